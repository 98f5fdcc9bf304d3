package api

import "net/netip"

// KindHostAddresses is not a kind of resources: it is what a host says of
// itself. But it is read as they are, by all who read them.
const KindHostAddresses Kind = "HostAddresses"

// AddressesRoot is the path that the HostAddresses of each host are below.
const AddressesRoot = "/tortie/v1/addresses/"

var hostAddresses = KindInfo{Kind: KindHostAddresses, decode: decodeAs[HostAddressesSpec]}

// HostAddresses are the addresses of a host, whose name is that of the object.
type HostAddresses = Resource[HostAddressesSpec]

// HostAddressesSpec has the interfaces that host endpoints may be about and that
// have an address by which others may know the host.
type HostAddressesSpec struct {
	Interfaces []InterfaceAddresses `json:"interfaces,omitempty"`
}

// InterfaceAddresses are those of one interface.
type InterfaceAddresses struct {
	Name      string `json:"name,omitempty"`
	Addresses []IP   `json:"addresses,omitempty"`
}

// AnyInterface is the name of the interface of a host endpoint that is for all.
const AnyInterface = "*"

// IsKnowable reports whether others may know a host by an address: it is neither
// of the host alone nor of one link.
func IsKnowable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && a.Zone() == ""
}
