package nft

import "golang.org/x/sys/unix"

// field is something of a packet or its connection that a rule can look at.
type field uint8

const (
	inName field = iota
	outName
	inIndex
	outIndex
	packetMark
	nfproto
	l4proto
	etherSource
	ipHead // version and traffic class, with some more bits
	ip4Source
	ip6Source
	ip4Destination
	ip6Destination
	l4Source
	l4Destination
	icmpType
	ndTarget
	arpSenderMAC
	arpSenderIP
	ctState
	ctStatus
	ctDirection
	ctMark
	ctProtocol
	ctSource4 // of the original direction
	ctSource6
	ctDestination4 // what answers: the destination after NAT
	ctDestination6
	ctDialled4 // the destination before NAT
	ctDialled6
	ctSourcePort
	ctDestinationPort
	ctICMP // type and code
)

// keyPart is nft's data type of one part of a key: its number, which tools
// that list the set need, and its length.
type keyPart struct {
	id  uint32
	len uint8
}

var (
	typeNumber = keyPart{4, 4}
	typeIP4    = keyPart{7, 4}
	typeIP6    = keyPart{8, 16}
	typeMAC    = keyPart{9, 6}
	typeProto  = keyPart{12, 1}
	typePort   = keyPart{13, 2}
	typeMark   = keyPart{19, 4}
	typeIndex  = keyPart{20, 4}
	typeName   = keyPart{41, 16}
	typeByte   = keyPart{4, 1}
)

type loader uint8

const (
	loadMeta loader = iota
	loadPayload
	loadCT
)

// fieldInfo says how a field is written, what it holds and how it is loaded.
type fieldInfo struct {
	text   string
	part   keyPart
	from   loader
	key    uint32 // of meta and ct; the header of payload
	offset uint32 // of payload; the direction of ct, or noDirection
}

const (
	noDirection = 255
	original    = 0
	reply       = 1
)

var fields = [...]fieldInfo{
	inName:            {"iifname", typeName, loadMeta, unix.NFT_META_IIFNAME, 0},
	outName:           {"oifname", typeName, loadMeta, unix.NFT_META_OIFNAME, 0},
	inIndex:           {"iif", typeIndex, loadMeta, unix.NFT_META_IIF, 0},
	outIndex:          {"oif", typeIndex, loadMeta, unix.NFT_META_OIF, 0},
	packetMark:        {"meta mark", typeMark, loadMeta, unix.NFT_META_MARK, 0},
	nfproto:           {"meta nfproto", typeByte, loadMeta, unix.NFT_META_NFPROTO, 0},
	l4proto:           {"meta l4proto", typeProto, loadMeta, unix.NFT_META_L4PROTO, 0},
	etherSource:       {"ether saddr", typeMAC, loadPayload, unix.NFT_PAYLOAD_LL_HEADER, 6},
	ipHead:            {"ip head", keyPart{4, 2}, loadPayload, unix.NFT_PAYLOAD_NETWORK_HEADER, 0},
	ip4Source:         {"ip saddr", typeIP4, loadPayload, unix.NFT_PAYLOAD_NETWORK_HEADER, 12},
	ip6Source:         {"ip6 saddr", typeIP6, loadPayload, unix.NFT_PAYLOAD_NETWORK_HEADER, 8},
	ip4Destination:    {"ip daddr", typeIP4, loadPayload, unix.NFT_PAYLOAD_NETWORK_HEADER, 16},
	ip6Destination:    {"ip6 daddr", typeIP6, loadPayload, unix.NFT_PAYLOAD_NETWORK_HEADER, 24},
	l4Source:          {"th sport", typePort, loadPayload, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0},
	l4Destination:     {"th dport", typePort, loadPayload, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2},
	icmpType:          {"icmpv6 type", typeByte, loadPayload, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0},
	ndTarget:          {"icmpv6 taddr", typeIP6, loadPayload, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 8},
	arpSenderMAC:      {"arp saddr ether", typeMAC, loadPayload, unix.NFT_PAYLOAD_NETWORK_HEADER, 8},
	arpSenderIP:       {"arp saddr ip", typeIP4, loadPayload, unix.NFT_PAYLOAD_NETWORK_HEADER, 14},
	ctState:           {"ct state", typeNumber, loadCT, unix.NFT_CT_STATE, noDirection},
	ctStatus:          {"ct status", typeNumber, loadCT, unix.NFT_CT_STATUS, noDirection},
	ctDirection:       {"ct direction", typeByte, loadCT, unix.NFT_CT_DIRECTION, noDirection},
	ctMark:            {"ct mark", typeNumber, loadCT, unix.NFT_CT_MARK, noDirection},
	ctProtocol:        {"ct protocol", typeProto, loadCT, unix.NFT_CT_PROTOCOL, noDirection},
	ctSource4:         {"ct original ip saddr", typeIP4, loadCT, unix.NFT_CT_SRC_IP, original},
	ctSource6:         {"ct original ip6 saddr", typeIP6, loadCT, unix.NFT_CT_SRC_IP6, original},
	ctDestination4:    {"ct reply ip saddr", typeIP4, loadCT, unix.NFT_CT_SRC_IP, reply},
	ctDestination6:    {"ct reply ip6 saddr", typeIP6, loadCT, unix.NFT_CT_SRC_IP6, reply},
	ctDialled4:        {"ct original ip daddr", typeIP4, loadCT, unix.NFT_CT_DST_IP, original},
	ctDialled6:        {"ct original ip6 daddr", typeIP6, loadCT, unix.NFT_CT_DST_IP6, original},
	ctSourcePort:      {"ct original proto-src", typePort, loadCT, unix.NFT_CT_PROTO_SRC, original},
	ctDestinationPort: {"ct reply proto-src", typePort, loadCT, unix.NFT_CT_PROTO_SRC, reply},
	ctICMP:            {"ct original proto-dst", typePort, loadCT, unix.NFT_CT_PROTO_DST, original},
}
