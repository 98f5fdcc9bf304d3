package nft

import "tortie/desired"

// end is what there is to look at of one end of a connection.
type end struct {
	addrs [2]field // IPv4, IPv6
	port  field
}

// view is what the rules of a stage look at, and what follows if one allows.
type view struct {
	packet              bool // there is no connection yet
	source, destination end
	protocol, icmp      field
	allow               action
	carrying
}

func viewOf(as desired.View, how carrying) view {
	v := view{
		source:      end{[2]field{ctSource4, ctSource6}, ctSourcePort},
		destination: end{[2]field{ctDestination4, ctDestination6}, ctDestinationPort},
		protocol:    ctProtocol, icmp: ctICMP, allow: action{kind: back}, carrying: how,
	}
	switch as {
	case desired.Dialled: // where ICMP has its type, other protocols have the port
		v.destination = end{[2]field{ctDialled4, ctDialled6}, ctICMP}
	case desired.Packet: // and type and code are where others have the source port
		v.packet, v.allow = true, lead(chainUntracked)
		v.source = end{[2]field{ip4Source, ip6Source}, l4Source}
		v.destination = end{[2]field{ip4Destination, ip6Destination}, l4Destination}
		v.protocol, v.icmp = l4proto, l4Source
	}
	return v
}
