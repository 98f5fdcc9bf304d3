package desired

import "tortie/api"

// AnyInterface is the name of the host endpoint that stands for each interface
// that has none of its own. Of traffic that passes through the host, only
// interfaces that are no workload's are meant.
const AnyInterface = api.AnyInterface

// HostEndpoint is policy for an interface of the host itself, or for one that
// may come.
type HostEndpoint struct {
	Endpoint api.Key
	Ingress  ProgramID // judges what ends in the host
	Egress   ProgramID // what begins there

	// What passes through the host; no program: all of it.
	ForwardIn, ForwardOut ProgramID

	// What is not to be tracked; no program: all is.
	UntrackedIn, UntrackedOut ProgramID
}

// View is how the rules of a stage see what they judge.
type View uint8

// The views.
const (
	Translated View = iota // the connection, addresses and ports after destination NAT
	Dialled                // the connection, as it was opened: before NAT
	Packet                 // a packet, before there is a connection; allowed, it gets none
)

// String spells the view as it is shown.
func (v View) String() string {
	return [...]string{"", "view=dialled", "view=packet"}[v]
}

// text is the endpoint in one line.
func (h HostEndpoint) text() string {
	var f fields
	f = append(f, h.Endpoint.String())
	for _, p := range []struct {
		name string
		id   ProgramID
	}{
		{"ingress", h.Ingress},
		{"egress", h.Egress},
		{"forward-in", h.ForwardIn},
		{"forward-out", h.ForwardOut},
		{"untracked-in", h.UntrackedIn},
		{"untracked-out", h.UntrackedOut},
	} {
		f.add(p.name, string(p.id))
	}
	return f.String()
}
