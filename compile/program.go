package compile

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"io"
	"slices"
	"strings"

	"tortie/api"
	"tortie/desired"
)

// ProfileStage is the name of the stage that has the rules of profiles.
const ProfileStage = "profiles"

// RestStage is the name of the stage of what nothing decided.
const RestStage = "rest"

// SetID identifies a selector by its canonical text.
func SetID(canonical string) desired.SetID {
	sum := sha256.Sum256([]byte(canonical))
	if id := desired.SetID(binary.BigEndian.Uint64(sum[:])); id != 0 {
		return id
	}
	return 1
}

// PortSetText is the canonical text, which SetID takes, of the places of named
// ports: those of what a selector, given by its canonical text, selects, with
// any of the sorted names. No selector reads like it.
func PortSetText(canonical string, names []string) string {
	return "ports " + strings.Join(names, ",") + " of " + canonical
}

// ProgramID identifies a program by its direction and the ordered list of its
// policies and profiles. It is short enough to be part of a chain's name.
func ProgramID(dir api.Direction, policies []api.Key, profiles []string) desired.ProgramID {
	return programID("", dir, policies, profiles)
}

// HostProgramID is the same for a program of a host endpoint; purposes, other
// than to judge what ends in the host or begins there, have names.
func HostProgramID(purpose string, dir api.Direction, policies []api.Key, profiles []string) desired.ProgramID {
	return "h" + programID("host "+purpose, dir, policies, profiles)
}

func programID(purpose string, dir api.Direction, policies []api.Key, profiles []string) desired.ProgramID {
	h := sha256.New()
	if purpose != "" {
		writeParts(h, "purpose", purpose)
	}
	for _, k := range policies {
		writeParts(h, "policy", string(k.Kind), k.Namespace, k.Name)
	}
	for _, p := range profiles {
		writeParts(h, "profile", p)
	}
	letter := "i"
	if dir == api.Egress {
		letter = "e"
	}
	return desired.ProgramID(letter + hex.EncodeToString(h.Sum(nil)[:8]))
}

// TrialID identifies a program that has a trial besides: the ordered list of
// policies of that.
func TrialID(id desired.ProgramID, policies []api.Key) desired.ProgramID {
	h := sha256.New()
	for _, k := range policies {
		writeParts(h, string(k.Kind), k.Namespace, k.Name)
	}
	return id + trialMark + desired.ProgramID(hex.EncodeToString(h.Sum(nil)[:8]))
}

// trialMark is between what a program enforces and what it tries.
const trialMark = "+"

// Enforces is the part of an ID that says what the program enforces.
func Enforces(id desired.ProgramID) desired.ProgramID {
	before, _, _ := strings.Cut(string(id), trialMark)
	return desired.ProgramID(before)
}

// writeParts writes each part with its length, so that no two lists of parts
// are written alike. A hash never fails.
func writeParts(h hash.Hash, parts ...string) {
	var n [4]byte
	for _, p := range parts {
		binary.BigEndian.PutUint32(n[:], uint32(len(p)))
		_, _ = h.Write(n[:])
		_, _ = io.WriteString(h, p)
	}
}

// Stage is one tier or the profiles: the translated rules of its policies in
// order, and what becomes of a connection that none of them decides.
type Stage struct {
	Name     string
	View     desired.View
	Policies [][]desired.Rule
	Who      []string        // which endpoints each policy is for; nothing, if that is not known
	End      desired.Verdict // Deny or Next; of what comes last, where that is not to deny, Allow
	EndID    string
}

// EndID identifies the end of a tier in one direction, or with a Profile of no
// name the end of all: no profile matched.
func EndID(owner api.Key, dir api.Direction) string { return idPrefix(owner, dir) + "end" }

// StagedEnd ends the identity of an end of a trial.
const StagedEnd = "staged-end"

// TrialEndID is EndID for the same end of a trial.
func TrialEndID(owner api.Key, dir api.Direction) string { return idPrefix(owner, dir) + StagedEnd }

// InForce are rules for a trial that are in force already: they are not
// counted, and not logged again.
func InForce(rules []desired.Rule) []desired.Rule {
	out := make([]desired.Rule, 0, len(rules))
	for _, r := range rules {
		if r.Verdict != desired.Log {
			r.ID, r.Note = "", ""
			out = append(out, r)
		}
	}
	return out
}

// Program joins stages. It leaves out rules and stages that no connection can
// reach, and says Deny where Next would lead to nothing.
func Program(stages []Stage) desired.Program { return program(stages, stage) }

func program(stages []Stage, stage func(Stage, fams) (desired.Stage, fams)) desired.Program {
	var p desired.Program
	reach := both
	for _, s := range stages {
		for _, part := range split(s) {
			if reach == 0 {
				break
			}
			var st desired.Stage
			st, reach = stage(part, reach)
			p.Stages = append(p.Stages, st)
		}
	}
	if n := len(p.Stages); n > 0 && p.Stages[n-1].End != desired.Allow {
		last := &p.Stages[n-1]
		last.End = desired.Deny
		if passes(last.Rules) {
			last.Rules = slices.Clone(last.Rules) // they may be others' too
		}
		for i := range last.Rules {
			if last.Rules[i].Verdict == desired.Next {
				last.Rules[i].Verdict = desired.Deny
			}
		}
	}
	return p
}

// fams is a set of address families.
type fams uint8

const (
	only4 fams = 1 << iota
	only6
	both = only4 | only6
)

func famsOf(r *desired.Rule) fams {
	switch r.Family {
	case 4:
		return only4
	case 6:
		return only6
	default:
		return both
	}
}

// stage translates one stage that connections of the families in open reach,
// and returns the families of which connections reach the next one.
func stage(s Stage, open fams) (desired.Stage, fams) {
	out := desired.Stage{Name: s.Name, View: s.View, End: s.End, EndID: s.EndID}
	var next fams
	for _, rules := range s.Policies {
		for i := range rules {
			r := rules[i]
			f := famsOf(&r) & open
			switch f {
			case 0:
				continue
			case only4:
				r.Family = 4
			case only6:
				r.Family = 6
			}
			out.Rules = append(out.Rules, r)
			if r.Verdict == desired.Next {
				next |= f
			}
			if r.Verdict != desired.Log && unconditional(&r) {
				open &^= f
			}
		}
	}
	if s.View == desired.Translated { // a dispatch looks at the port after NAT
		out.Dispatch, out.Others = dispatch(out.Rules)
	}
	if s.End == desired.Next {
		next |= open
	}
	return out, next
}

// unconditional reports whether the rule matches all connections of its
// families.
func unconditional(r *desired.Rule) bool {
	return r.Protocol == 0 && r.NotProtocol == 0 && r.ICMP == nil && r.NotICMP == nil &&
		anyPeer(&r.Source) && anyPeer(&r.Destination)
}

func anyPeer(p *desired.Peer) bool {
	return len(p.Nets) == 0 && len(p.NotNets) == 0 && p.Set == 0 && p.NotSet == 0 &&
		len(p.Ports) == 0 && len(p.NotPorts) == 0 && p.Named == 0 && p.NotNamed == 0
}
