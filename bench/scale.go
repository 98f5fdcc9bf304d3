package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tortie/api"
	"tortie/store"
)

const (
	endpointRounds = 100
	ruleRounds     = 200
	memberRounds   = 200
	waitLimit      = 10 * time.Second
)

// benchScale measures start, latencies and restart with 1,000 local endpoints
// and the given number of remote ones; each endpoint has so many extra policies.
func benchScale(b *bench, suffix string, remote, extra int) error {
	if err := b.interfaces(localCount + spareCount); err != nil {
		return err
	}
	s, etcd, err := b.datastore()
	if err != nil {
		return err
	}
	defer etcd.stop()
	if err := load(s, localCount, remote, extra); err != nil {
		return err
	}
	agent, took, err := b.agent()
	if err != nil {
		return err
	}
	defer func() { agent.stop() }()
	switch suffix {
	case "1k":
		b.add("agent/start/1k", took.Seconds(), "s", 1.5)
	case "100k":
		b.add("agent/start/100k", took.Seconds(), "s", 4)
		rss, err := agent.peakRSS()
		if err != nil {
			return err
		}
		b.add("agent/start-rss/100k", rss/1e6, "MB", 300)
	}
	ruleTarget := 3.0
	if extra > 0 {
		ruleTarget = 4
	}
	if err := b.latencies(s, suffix, ruleTarget); err != nil {
		return err
	}
	if suffix == "1k" {
		if agent, err = b.restart(agent); err != nil {
			return err
		}
	}
	agent.stop()
	if err := b.cleanup(); err != nil {
		return err
	}
	b.flatness()
	return nil
}

// latencies measures from the return of a put to the kernel's notification.
func (b *bench) latencies(s store.Store, suffix string, ruleTarget float64) error {
	w, err := watchKernel()
	if err != nil {
		return err
	}
	defer w.close()
	measure := func(rounds int, one func(i int) (store.Op, []sign)) ([]time.Duration, error) {
		took := make([]time.Duration, 0, rounds)
		for i := range rounds {
			op, signs := one(i)
			w.drain()
			if _, err := s.Commit(context.Background(), op); err != nil {
				return nil, err
			}
			returned := time.Now()
			seen, err := w.wait(waitLimit, signs...)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", op.Path, err)
			}
			took = append(took, seen.Sub(returned)) // negative where the kernel was faster than the answer to the put
		}
		return took, nil
	}
	took, err := measure(endpointRounds, func(i int) (store.Op, []sign) {
		n := localCount + i
		v4, v6 := addresses(n)
		return put(workload(n, benchHost, groupName(n))), []sign{
			{nftNewElem, []byte(interfaceName(n))},
			{unix.RTM_NEWROUTE, v4.AsSlice()},
			{unix.RTM_NEWROUTE, v6.AsSlice()},
		}
	})
	if err != nil {
		return err
	}
	b.percentiles("agent/endpoint", suffix, took, 5, 25)
	took, err = measure(ruleRounds, func(i int) (store.Op, []sign) {
		port := 40_000 + i
		return put(policy(groupName(0), "group == 'g00'", 10, port)), []sign{{0, portData(port)}}
	})
	if err != nil {
		return err
	}
	b.percentiles("agent/rule", suffix, took, ruleTarget, 15)
	took, err = measure(memberRounds, func(i int) (store.Op, []sign) {
		n := 1_000_000 + i
		v4, v6 := addresses(n)
		return put(workload(n, "late", "g00")), []sign{{nftNewElem, v4.AsSlice()}, {nftNewElem, v6.AsSlice()}}
	})
	if err != nil {
		return err
	}
	b.percentiles("agent/member", suffix, took, 2, 10)
	return nil
}

// portData is the port as what a rule compares with or, where ports lead to
// rules, as the key of an element.
func portData(port int) []byte {
	b := binary.NativeEndian.AppendUint16(nil, 6) // the attribute's length
	b = binary.NativeEndian.AppendUint16(b, unix.NFTA_DATA_VALUE)
	return binary.BigEndian.AppendUint16(b, uint16(port))
}

func (b *bench) percentiles(name, suffix string, took []time.Duration, p50, p99 float64) {
	b.add(name+"-p50/"+suffix, percentile(took, 0.50), "ms", p50)
	b.add(name+"-p99/"+suffix, percentile(took, 0.99), "ms", p99)
}

// percentile is in milliseconds; it sorts.
func percentile(took []time.Duration, q float64) float64 {
	slices.Sort(took)
	return float64(took[int(q*float64(len(took)-1))]) / float64(time.Millisecond)
}

// flatness is the worst growth of a median from 1k to 100k remote endpoints.
func (b *bench) flatness() {
	worst := 0.0
	for _, name := range []string{"agent/endpoint-p50/", "agent/rule-p50/", "agent/member-p50/"} {
		small, ok1 := b.results[name+"1k"]
		large, ok2 := b.results[name+"100k"]
		if !ok1 || !ok2 {
			return
		}
		worst = max(worst, large.Value/small.Value)
	}
	b.add("agent/flatness", worst, "ratio", 1.5)
}

// restart kills the agent and starts it on the correct kernel that it left.
func (b *bench) restart(agent *process) (*process, error) {
	agent.kill()
	w, err := watchKernel()
	if err != nil {
		return nil, err
	}
	defer w.close()
	w.drain()
	agent, took, err := b.agent()
	if err != nil {
		return nil, err
	}
	b.add("agent/restart/1k", took.Seconds(), "s", 1.5)
	b.add("agent/restart-writes", float64(w.drain()), "count", 0)
	return agent, nil
}

// cleanup empties the kernel between suites and says whether that worked.
func (b *bench) cleanup() error {
	p, err := b.start("cleanup", "cleanup", "--run-dir", b.runDir())
	if err != nil {
		return err
	}
	<-p.done
	if !p.cmd.ProcessState.Success() {
		log, _ := os.ReadFile(b.dir + "/cleanup.log")
		return fmt.Errorf("cleanup: %s", tail(log))
	}
	return nil
}

// benchChurn measures the agent's processor time for a change, with 100 local
// and 10,000 remote endpoints and 100 changes a second for 30 seconds.
func benchChurn(b *bench) error {
	const local, remote, rate, seconds = 100, 10_000, 100, 30
	if err := b.interfaces(local); err != nil {
		return err
	}
	s, etcd, err := b.datastore()
	if err != nil {
		return err
	}
	defer etcd.stop()
	if err := load(s, local, remote, 0); err != nil {
		return err
	}
	agent, _, err := b.agent()
	if err != nil {
		return err
	}
	defer func() { agent.stop() }()
	for _, kind := range []struct {
		name   string
		target float64
		change func(i int) (api.Key, []byte)
	}{
		{"agent/churn-cpu-local", 1, func(i int) (api.Key, []byte) { return workload(i%local, benchHost, groupName(i%local+1+i/local)) }},
		{"agent/churn-cpu-remote", 0.2, func(i int) (api.Key, []byte) {
			n := remoteBase + i*7%remote
			return workload(n, remoteHost(n), groupName(n+1))
		}},
	} {
		before, err := agent.cpu()
		if err != nil {
			return err
		}
		tick := time.NewTicker(time.Second / rate)
		for i := range rate * seconds {
			<-tick.C
			if _, err := s.Commit(context.Background(), put(kind.change(i))); err != nil {
				return err
			}
		}
		tick.Stop()
		after, err := agent.cpu()
		if err != nil {
			return err
		}
		b.add(kind.name, float64(after-before)/float64(time.Millisecond)/(rate*seconds), "ms", kind.target)
	}
	agent.stop()
	return b.cleanup()
}
