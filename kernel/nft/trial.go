package nft

import "tortie/desired"

// What staged policies would do is asked before what is in force decides, in
// chains that do no more than count and return: they change no verdict.

// addTrial adds the chains of a trial to those of its program, which asks it
// first: none of its rules does more than count and return. Without an error it
// is there.
func addTrial(program []chain, stages []desired.Stage, how carrying) ([]chain, error) {
	if len(stages) == 0 {
		return program, nil
	}
	first := trialChain(program[0].name)
	trial, err := programRenderer{first: first, carrying: how, trial: true, most: maxDepth, depth: 1}.chains(stages)
	if err != nil {
		return program, err
	}
	program[0].rules = append([]rule{when(action{kind: jump, name: first})}, program[0].rules...)
	return append(program, trial...), nil
}

// trialChain is the name of the chain that a program's trial starts with.
func trialChain(program string) string { return program + "-t" }

// tried has the rules of a trial count instead of deciding.
func tried(rules []rule, r *desired.Rule) {
	does := counts(r.ID)
	if r.Verdict != desired.Log {
		does = counts(r.ID, action{kind: back})
	}
	for i := range rules {
		rules[i].does = does
	}
}

// end is what becomes of a connection that a stage does not decide.
func (r *programRenderer) end(s *desired.Stage) rule {
	if r.trial {
		return rule{does: counts(s.EndID, action{kind: back})}
	}
	return r.carrying.end(s)
}
