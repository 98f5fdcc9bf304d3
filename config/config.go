package config

import (
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"time"
)

// Config has the settings that a process acts on. The tags say:
//
//	name     the parameter's name; FELIX_<NAME> in the environment, and in
//	         the file and the resource the same with any case
//	alias    further names
//	env      further variables of the environment
//	default  what counts where no source has it
//	type     how it is checked, beyond its Go type
//	min      the least duration
//	local    not taken from the datastore; a bad value is an error, or, if
//	         lenient, a problem like any other's
//	doc      what it does
type Config struct {
	Hostname string `name:"FelixHostname" alias:"Hostname" local:"true" type:"host" doc:"The name of this host, which must equal what endpoints name as their node, byte for byte. Default: the host's name in lower case."`

	EtcdEndpoints []string `name:"EtcdEndpoints" env:"ETCD_ENDPOINTS" local:"true" default:"http://127.0.0.1:2379" doc:"URLs of the etcd servers, separated by commas; all http or all https."`
	EtcdAddr      string   `name:"EtcdAddr" local:"true" type:"hostport" doc:"host:port of the etcd server. It counts where no endpoints are given."`
	EtcdScheme    string   `name:"EtcdScheme" local:"true" default:"http" type:"http,https" doc:"What goes with EtcdAddr."`
	EtcdCAFile    string   `name:"EtcdCaFile" env:"ETCD_CA_CERT_FILE" local:"true" doc:"PEM file of the authorities that sign the servers' certificates. Default: those of the system."`
	EtcdCertFile  string   `name:"EtcdCertFile" env:"ETCD_CERT_FILE" local:"true" doc:"PEM file of this client's certificate."`
	EtcdKeyFile   string   `name:"EtcdKeyFile" env:"ETCD_KEY_FILE" local:"true" doc:"PEM file of its key. It should be readable by its owner only."`
	EtcdUsername  string   `name:"EtcdUsername" env:"ETCD_USERNAME" local:"true" doc:"User to log in to etcd as."`
	EtcdPassword  Secret   `name:"EtcdPassword" env:"ETCD_PASSWORD" local:"true" doc:"Their password. A file that has it should be readable by its owner only."`

	RunDir string `name:"RunDir" local:"true" default:"/run/tortie" doc:"Directory of the processes' sockets."`

	InterfacePrefixes []string `name:"InterfacePrefix" default:"cali,tap" type:"prefixes" doc:"What the names of workloads' interfaces begin with, separated by commas. Until the datastore is read, interfaces with these prefixes pass nothing."`
	OpenstackRegion   string   `name:"OpenstackRegion" type:"region" doc:"The OpenStack region of this host, part of the keys that status is written to. Empty: none."`

	EndpointReportingEnabled bool          `name:"EndpointReportingEnabled" default:"false" doc:"Whether the state of each endpoint is written to the datastore. Neutron needs it, and its driver turns it on."`
	EndpointReportingDelay   time.Duration `name:"EndpointReportingDelay" alias:"EndpointReportingDelaySecs" default:"1s" min:"0s" doc:"How long states of endpoints are collected before they are written."`
	ReportingInterval        time.Duration `name:"ReportingInterval" alias:"ReportingIntervalSecs" default:"30s" min:"1s" doc:"How often this host says that it is alive."`
	ReportingTTL             time.Duration `name:"ReportingTTL" alias:"ReportingTTLSecs" default:"90s" min:"2s" doc:"After which silence it counts as dead; more than the interval."`

	DefaultEndpointToHostAction string `name:"DefaultEndpointToHostAction" default:"Drop" type:"Drop,Return,Accept" doc:"What becomes of packets from workloads to their host that policy allows: Drop, Accept, or Return to the host's own rules."`
	FailsafeInboundHostPorts    string `name:"FailsafeInboundHostPorts" default:"tcp:22,udp:68,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667" type:"failsafe" doc:"Ports of the host that stay open whatever the policy of its host endpoints says: protocol:port or protocol:network:port, separated by commas, or none. As a list in a resource: of protocol, port and, if not any, net."`
	FailsafeOutboundHostPorts   string `name:"FailsafeOutboundHostPorts" default:"udp:53,udp:67,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667" type:"failsafe" doc:"The same for what the host opens; the network is that of the other end."`
	EndpointToHostPacketRate    int    `name:"EndpointToHostPacketRate" default:"200" type:"rate" doc:"How many packets a second each workload may send to its host of what costs that most: ARP, as one kind, and ICMP, IGMP, neighbour discovery, DHCP and DNS together, as another. Twice as many may come at once. 0: no limit. What is cut is counted in over-host-rate."`
	WorkloadSourceSpoofing      string `name:"WorkloadSourceSpoofing" default:"Disabled" type:"Any,Disabled" doc:"Whether endpoints may use the sources that allowSpoofedSourcePrefixes adds to their own."`
	IPv6Support                 bool   `name:"Ipv6Support" default:"true" doc:"Whether IPv6 of workloads is served."`
	MetadataAddr                string `name:"MetadataAddr" default:"127.0.0.1" type:"address" doc:"Where OpenStack's metadata service listens; none: nowhere."`
	MetadataPort                uint16 `name:"MetadataPort" default:"8775" type:"port" doc:"Its port."`

	FloatingIPs           string `name:"FloatingIPs" default:"Disabled" type:"Enabled,Disabled" doc:"Whether external addresses (ipNATs) of endpoints count. Those of OpenStack count in any case."`
	NATOutgoingAddress    string `name:"NATOutgoingAddress" type:"ip" doc:"The address with which workloads in a pool with natOutgoing reach outside. Empty, and for the other family: that of the interface by which they do."`
	NATPortRange          string `name:"NATPortRange" default:"32768:60999" type:"ports" doc:"The ports that they then have: one, or min:max. From a port that the host serves, a workload would be sent what others send there."`
	NATOutgoingExclusions string `name:"NATOutgoingExclusions" default:"IPPoolsOnly" type:"IPPoolsOnly,IPPoolsAndHostIPs" doc:"What is not outside: the pools, or also the addresses that nodes have for BGP."`

	NftablesRefreshInterval  time.Duration `name:"NftablesRefreshInterval" alias:"IptablesRefreshInterval,IpsetsRefreshInterval" default:"180s" min:"1s" doc:"How often the kernel's rules and sets are read back and compared. 0, upstream's way to say never, is 24h."`
	RouteRefreshInterval     time.Duration `name:"RouteRefreshInterval" default:"90s" min:"1s" doc:"The same for routes."`
	PolicyAuditInterval      time.Duration `name:"PolicyAuditInterval" default:"15m" doc:"How often the kernel's rules are proven to do what policy says, as tortie verify does, on a thread of the lowest priority. It reads the datastore once each time. 0 is never."`
	InterfaceRefreshInterval time.Duration `name:"InterfaceRefreshInterval" default:"90s" min:"1s" doc:"The same for interfaces and their settings."`
	DeviceRouteProtocol      int           `name:"DeviceRouteProtocol" local:"lenient" default:"80" type:"protocol" doc:"The protocol number of the routes to this host's workloads, by which they are known to be ours; upstream's default is 3, which other programs use too. 0 to 4 are the kernel's and the administrator's, 81 is that of learned routes."`

	DeniedEventsEnabled bool `name:"DeniedEventsEnabled" default:"true" doc:"Whether packets that policy denies are told of, within limits: in the log and by tortie show denied."`

	LogSeverityScreen        string `name:"LogSeverityScreen" default:"Info" type:"Trace,Debug,Info,Warning,Error,Fatal" doc:"The least severity that is logged, to standard error."`
	PrometheusMetricsEnabled bool   `name:"PrometheusMetricsEnabled" default:"false" doc:"Whether metrics are served by HTTP."`
	PrometheusMetricsHost    string `name:"PrometheusMetricsHost" doc:"The address to serve them on. Empty: all."`
	PrometheusMetricsPort    uint16 `name:"PrometheusMetricsPort" default:"9091" type:"port" doc:"The port to serve them on."`
	HealthEnabled            bool   `name:"HealthEnabled" default:"false" doc:"Whether health is served by HTTP on a port, besides the process's socket."`
	HealthHost               string `name:"HealthHost" default:"localhost" doc:"The address to serve it on."`
	HealthPort               uint16 `name:"HealthPort" default:"9099" type:"port" doc:"The port to serve it on."`

	// RefreshInterval is the shortest of the three refresh intervals.
	RefreshInterval time.Duration

	sources map[string]string // by name of the parameter; none: built in
}

// Equal reports that all values are equal, whatever their sources.
func (c Config) Equal(o Config) bool {
	c.sources, o.sources = nil, nil
	return reflect.DeepEqual(c, o)
}

// NATPorts is NATPortRange as first and last port, both 0 if any is right.
func (c Config) NATPorts() (ports [2]uint16) {
	ports, _ = parsePorts(c.NATPortRange) // it was checked
	return ports
}

// LogLevel is LogSeverityScreen in the terms of slog.
func (c Config) LogLevel() slog.Level {
	switch c.LogSeverityScreen {
	case "Trace", "Debug":
		return slog.LevelDebug
	case "Warning":
		return slog.LevelWarn
	case "Error", "Fatal":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// Setting is one value and where it came from.
type Setting struct {
	Name   string
	Value  string
	Source string
}

// builtIn is the source of values that nobody gave.
const builtIn = "built-in default"

// Explain lists all settings. Secrets are only said to be there.
func (c Config) Explain() []Setting {
	v := reflect.ValueOf(c)
	var list []Setting
	for _, p := range params {
		s := Setting{Name: p.name, Value: show(v.Field(p.field)), Source: c.sources[p.name]}
		if s.Source == "" {
			s.Source = builtIn
		}
		list = append(list, s)
	}
	return list
}

func show(v reflect.Value) string {
	if list, ok := v.Interface().([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(v.Interface())
}

// Secret is a text that must not be printed.
type Secret string

// String says whether there is a secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(set)"
}

// GoString is String.
func (s Secret) GoString() string { return s.String() }

// MarshalText is String.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue is String.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
