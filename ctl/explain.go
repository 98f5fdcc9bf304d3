package ctl

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tortie/api"
	"tortie/explain"
)

// errDenied ends explain where a connection is denied, which has been said.
var errDenied = errors.New("denied")

// question is what explain is asked.
type question struct {
	from, to, port string
	sourcePort     uint16
	ipVersion      int
	via            []string
	files          []string
	namespace      string
	output         string
}

// ephemeral stands for the port that a client gets.
const ephemeral = 40000

var explainFormats = []string{"text", "yaml", "json"}

func explainCommand(o Options) *cobra.Command {
	q := &question{}
	cmd := &cobra.Command{
		Use:   "explain --from END --to END --port PROTOCOL/PORT | ENDPOINT",
		Short: "Say what policy decides on a connection, and why; or what policy an endpoint has",
		Long: `Say what policy decides on a connection at the hosts of both its ends, tier by
tier, and which policy and rule decided. Rules count from 0, as in the path
spec.ingress[0]. It is worked out from the objects; no host is asked.

An end is an endpoint: its name, or of a workload that of the workload, or its id
in the workload, with NAMESPACE/ before it or not; a label=value; or a selector.
It must be the only one that is meant. Or an end is an address: an endpoint's, a
host's, or any other, which is outside and where nothing is enforced.

Where policy of a host itself has a say, --via names the host endpoint of the
interface by which the connection leaves that host or comes to it. Without, it
is taken to be the one that has the host's address, or the first that names an
interface.

A port is tcp/5432, udp/53, sctp/2905; icmp (a ping, in both families), icmp/8,
icmp/8/0, icmpv6/128; or the name or number of another protocol. Without a port,
no rule that names ports holds.

Where staged policies concern the connection, it says what they would change.

With ENDPOINT alone: its tiers and policies in order, its profiles, and which
fields of them are not in force.

Exit code: 0 if the connection is allowed, in each family that is asked about; 1
after an error; 2 if it is denied.`,
		Example: "  tortie explain --from web-1 --to role=db --port tcp/5432\n" +
			"  tortie explain --from 198.51.100.9 --to default/web-1 --port tcp/443 --ip-version 4 -o json\n" +
			"  tortie explain --from web-1 --to db-1 --port icmp -f examples/ -f endpoints.yaml\n" +
			"  tortie explain --from 198.51.100.9 --to 192.0.2.11 --port tcp/22 --via db1-eth1\n  tortie explain web-1",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return q.run(cmd, o, args) },
	}
	f := cmd.Flags()
	f.StringVar(&q.from, "from", "", "the end that opens the connection")
	f.StringVar(&q.to, "to", "", "the end that it is opened to")
	f.StringVar(&q.port, "port", "", "protocol and port, or type and code, of the connection")
	f.Uint16Var(&q.sourcePort, "source-port", ephemeral, "port that it is opened from")
	f.StringSliceVar(&q.via, "via", nil, "host endpoint of the interface by which it leaves a host or comes to it; may be repeated, for each host")
	f.IntVar(&q.ipVersion, "ip-version", 0, "4 or 6, instead of every family that both ends have")
	f.StringVarP(&q.output, "output", "o", explainFormats[0], strings.Join(explainFormats, "|"))
	filenameFlag(cmd, &q.files)
	f.Lookup("filename").Usage = "answer from a manifest, a folder of manifests, or - for stdin, instead of the datastore; may be repeated"
	namespaceFlag(cmd, &q.namespace)
	cmd.MarkFlagsRequiredTogether("from", "to", "port")
	f.Lookup("namespace").Usage = "namespace of objects in files that name none"
	return cmd
}

func (q *question) run(cmd *cobra.Command, o Options, args []string) error {
	if err := q.check(cmd, args); err != nil {
		return err
	}
	c, err := o.read(cmd, q.files, q.namespace)
	if err != nil {
		return err
	}
	return q.ask(cmd, c, args)
}

func (q *question) ask(cmd *cobra.Command, c *cluster, args []string) error {
	if len(args) == 1 {
		key, err := c.only(args[0])
		if err != nil {
			return fmt.Errorf("explain %s: %w", args[0], err)
		}
		return q.print(cmd, c.effective(key))
	}
	answer, err := q.answer(cmd, c)
	if err != nil {
		return err
	}
	if err := q.print(cmd, answer); err != nil {
		return err
	}
	if answer.Verdict != api.Allow {
		return errDenied
	}
	return nil
}

// check refuses what cannot be meant, before anything is read.
func (q *question) check(cmd *cobra.Command, args []string) error {
	if err := checkFormat(q.output, explainFormats); err != nil {
		return err
	}
	switch asked := q.from + q.to + q.port; {
	case (asked == "") == (len(args) == 0):
		return errors.New("want either ENDPOINT or --from, --to and --port")
	case !slices.Contains([]int{0, 4, 6}, q.ipVersion) || q.ipVersion == 0 && cmd.Flags().Changed("ip-version"):
		return fmt.Errorf("--ip-version %d: want 4 or 6", q.ipVersion)
	}
	return nil
}

// answer asks about each family.
func (q *question) answer(cmd *cobra.Command, c *cluster) (*Explanation, error) {
	s, err := parseService(q.port)
	if err != nil {
		return nil, err
	}
	if s[4].SrcPort == 0 && cmd.Flags().Changed("source-port") {
		return nil, fmt.Errorf("--source-port %d: --port %s has no ports", q.sourcePort, q.port)
	}
	from, err1 := c.end("--from", q.from)
	to, err2 := c.end("--to", q.to)
	via, err3 := c.via(q.via)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	x, staged := &Explanation{Verdict: api.Allow}, c.staged()
	for _, family := range []int{4, 6} {
		src, ok1 := from.addr(family)
		dst, ok2 := to.addr(family)
		p, ok3 := s[family]
		if !ok1 || !ok2 || !ok3 || q.ipVersion != 0 && q.ipVersion != family {
			continue
		}
		if p.Src, p.Dst = src, dst; p.SrcPort != 0 {
			p.SrcPort = q.sourcePort
		}
		way := explain.Way{From: from.key, To: to.key, Via: via}
		r := c.Along(way, p)
		if r.Source != nil && r.Destination != nil && r.Source.Endpoint == r.Destination.Endpoint && r.Received == nil {
			return nil, fmt.Errorf("%s, %s: both are %v, which reaches itself without its host", from.text, to.text, r.Source.Endpoint)
		}
		f := FamilyVerdict{IPVersion: family, Port: q.port, Packet: p, Result: r, Summary: summary(r)}
		x.add(c, f.with(staged.Along(way, p)))
	}
	if len(x.Families) == 0 {
		return nil, q.noFamily(from, to)
	}
	return x, nil
}

// noFamily says why there is nothing to ask about.
func (q *question) noFamily(ends ...end) error {
	var parts []string
	for _, e := range ends {
		has := map[bool]string{}
		for _, a := range e.addrs {
			has[a.Is4()] = a.String()
		}
		parts = append(parts, fmt.Sprintf("%s has IPv4 address %s and IPv6 address %s", e.text, cmp.Or(has[true], none), cmp.Or(has[false], none)))
	}
	if q.ipVersion != 0 {
		parts = append(parts, fmt.Sprintf("--ip-version is %d", q.ipVersion))
	}
	return fmt.Errorf("--port %s: the ends have no family in common that it is of: %s", q.port, strings.Join(parts, "; "))
}

func (q *question) print(cmd *cobra.Command, answer interface{ text() string }) error {
	if q.output != "text" {
		return writeAs(cmd.OutOrStdout(), q.output, answer)
	}
	_, err := fmt.Fprint(cmd.OutOrStdout(), answer.text())
	return err
}
