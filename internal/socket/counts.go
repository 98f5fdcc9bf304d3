package socket

// RuleCount is what a rule of this host's policy has counted; the page
// /counters of the agent is a list of them. Each connection is counted when it
// is judged: once, and again after policy was tightened; of one that is denied,
// each packet.
type RuleCount struct {
	Tier      string `json:"tier,omitempty"` // "" for profiles
	Kind      string `json:"kind"`           // of the policy or profile; Tier, where no rule of the tier decided
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"` // none, with Profile: no profile matched
	Direction string `json:"direction"`
	Rule      *int   `json:"rule,omitempty"` // in the list of that direction, from 0; nil: the end of the tier, or of all
	Action    string `json:"action"`
	Staged    bool   `json:"staged,omitempty"` // it would have decided, were the staged policies in force
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

// CountersPage is where the agent has them.
const CountersPage = "/counters"
