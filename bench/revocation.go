package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"tortie/api"
	"tortie/store"
)

// Of the connections of 100 ports of the client with 100 of the server, those
// with the server's first port are forbidden. Half are IPv4, half IPv6.
const (
	revokedGroup = "revoked"
	revokePorts  = 100
	revokeRounds = 20
	revokeLocal  = 100
	revokeRemote = 10_000
	revokePause  = 5 * time.Millisecond   // between two packets of a connection that is to be forbidden
	revokeQuiet  = 300 * time.Millisecond // after which no packet is on its way
	clientPort   = 20_000                 // the first
)

// benchRevocation measures from the return of the put of a policy to the last
// packet that each of 100 connections that it forbids delivers, while these and
// 9,900 others send.
func benchRevocation(b *bench) error {
	if err := b.interfaces(revokeLocal); err != nil {
		return err
	}
	s, etcd, err := b.datastore()
	if err != nil {
		return err
	}
	defer etcd.stop()
	t, err := b.ends()
	if err != nil {
		return err
	}
	defer t.close()
	if err := load(s, revokeLocal, revokeRemote, 0); err != nil {
		return err
	}
	for _, e := range []*end{t.client, t.server} {
		if _, err := s.Commit(context.Background(), put(workloadOf(benchHost, revokedGroup, e.routers, e.v4, e.v6))); err != nil {
			return err
		}
	}
	if _, err := s.Commit(context.Background(), put(revokePolicy(false))); err != nil {
		return err
	}
	agent, _, err := b.agent()
	if err != nil {
		return err
	}
	defer func() { agent.stop() }()
	f, err := newFlows(t)
	if err != nil {
		return err
	}
	took, err := f.revoke(s)
	err = errors.Join(err, f.close())
	if err != nil {
		return err
	}
	b.log.Info("revoked", "connections", len(took), "p50", percentile(took, 0.50), "longest", percentile(took, 1))
	b.add("policy/revoke-p99", percentile(took, 0.99), "ms", 100)
	agent.stop()
	return b.cleanup()
}

// ends are a client and a server at workload interfaces of the host that the
// agent is on.
func (b *bench) ends() (*triple, error) {
	t := newEnds("revocation")
	var err error
	if t.router, err = netns.Get(); err == nil {
		t.links, err = netlink.NewHandle()
	}
	if err == nil {
		t.client.routers, t.server.routers = interfaceName(revokeLocal), interfaceName(revokeLocal+1)
		err = t.build()
	}
	if err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// revokePolicy lets the client reach all ports of the server, or all but the
// first.
func revokePolicy(forbid bool) (api.Key, []byte) {
	group := "group == '" + revokedGroup + "'"
	ingress := []map[string]any{{"action": "Allow", "protocol": "UDP", "source": map[string]any{"selector": group}}}
	if forbid {
		ingress = append([]map[string]any{{"action": "Deny", "protocol": "UDP", "destination": map[string]any{"ports": []any{trafficPort}}}}, ingress...)
	}
	key := api.Key{Kind: api.KindGlobalNetworkPolicy, Name: revokedGroup}
	value, err := json.Marshal(map[string]any{
		"kind": "GlobalNetworkPolicy", "apiVersion": api.APIVersion,
		"metadata": map[string]any{"name": key.Name},
		"spec": map[string]any{
			"tier": "default", "order": 0, "selector": group, "types": []string{"Ingress", "Egress"},
			"ingress": ingress, "egress": []map[string]any{{"action": "Allow"}},
		},
	})
	if err != nil {
		panic(err) // a value of this shape always marshals
	}
	return key, value
}

// flows are the connections: one goroutine sends, one for each family receives
// what is for the first port.
type flows struct {
	t       *triple
	clients []int // sockets
	servers []int // the first two are the first port's
	last    [revokePorts]atomic.Int64
	stop    chan struct{}
	running sync.WaitGroup
}

func newFlows(t *triple) (*flows, error) {
	f := &flows{t: t, stop: make(chan struct{})}
	err := inside(t.server.ns, func() error {
		for i := range revokePorts {
			for _, v6 := range []bool{false, true} {
				fd, err := bound(unix.SOCK_DGRAM, t.server.at(v6, trafficPort+uint16(i)))
				if err != nil {
					return err
				}
				f.servers = append(f.servers, fd)
			}
		}
		return nil
	})
	err = errors.Join(err, inside(t.client.ns, func() error {
		for i := range revokePorts {
			fd, err := bound(unix.SOCK_DGRAM, t.client.at(i%2 == 1, clientPort+uint16(i)))
			if err != nil {
				return err
			}
			f.clients = append(f.clients, fd)
		}
		return nil
	}))
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	for _, fd := range f.servers[:2] {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
			return nil, errors.Join(err, f.close())
		}
		f.running.Go(func() { f.receive(fd) })
	}
	f.running.Go(f.send)
	return f, nil
}

func (f *flows) close() error {
	close(f.stop)
	f.running.Wait()
	var errs []error
	for _, fd := range slices.Concat(f.clients, f.servers) {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// send sends a packet of each connection that is to be forbidden and of as many
// others, again and again.
func (f *flows) send() {
	var to [2][revokePorts]unix.Sockaddr
	for i := range revokePorts {
		to[0][i] = sockaddr(f.t.server.at(false, trafficPort+uint16(i)))
		to[1][i] = sockaddr(f.t.server.at(true, trafficPort+uint16(i)))
	}
	payload := make([]byte, payloadSize)
	tick := time.NewTicker(revokePause)
	defer tick.Stop()
	for other := 1; ; other = other%(revokePorts-1) + 1 {
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
		for i, fd := range f.clients {
			_ = unix.Sendto(fd, payload, 0, to[i%2][0]) // what is lost was not the last
			_ = unix.Sendto(fd, payload, 0, to[i%2][other])
		}
	}
}

// receive notes when the last packet of each connection arrived, by the kernel.
func (f *flows) receive(fd int) {
	buf, control := make([]byte, payloadSize), make([]byte, 128)
	for {
		_, n, _, from, err := unix.Recvmsg(fd, buf, control, 0)
		select {
		case <-f.stop:
			return
		default:
		}
		if err != nil {
			continue // nothing for a while
		}
		port := 0
		switch a := from.(type) {
		case *unix.SockaddrInet4:
			port = a.Port
		case *unix.SockaddrInet6:
			port = a.Port
		}
		messages, err := unix.ParseSocketControlMessage(control[:n])
		if i := port - clientPort; err == nil && len(messages) == 1 && i >= 0 && i < revokePorts {
			at := (*unix.Timespec)(unsafe.Pointer(&messages[0].Data[0]))
			f.last[i].Store(at.Nano())
		}
	}
}

// revoke forbids the connections, round after round, and returns how long after
// the put each delivered its last packet.
func (f *flows) revoke(s store.Store) (took []time.Duration, err error) {
	for range revokeRounds {
		begin := time.Now()
		if err := f.wait(func(first, _ time.Time) bool { return first.After(begin) }); err != nil {
			return nil, fmt.Errorf("not all connections are alive: %w", err)
		}
		if _, err := s.Commit(context.Background(), put(revokePolicy(true))); err != nil {
			return nil, err
		}
		returned := time.Now()
		if err := f.wait(func(_, last time.Time) bool { return time.Since(last) > revokeQuiet }); err != nil {
			return nil, fmt.Errorf("connections outlive the policy: %w", err)
		}
		for i := range f.last {
			took = append(took, time.Unix(0, f.last[i].Load()).Sub(returned)) // negative where the kernel was faster than the answer to the put
		}
		before, err := f.t.arrived()
		if err != nil {
			return nil, err
		}
		if err := f.others(before); err != nil {
			return nil, err
		}
		if _, err := s.Commit(context.Background(), put(revokePolicy(false))); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// wait asks again and again when the connection that is silent longest, and the
// one that is not, delivered.
func (f *flows) wait(done func(first, last time.Time) bool) error {
	tick := time.NewTicker(revokePause)
	defer tick.Stop()
	limit := time.Now().Add(waitLimit)
	for now := range tick.C {
		first, last := f.last[0].Load(), f.last[0].Load()
		for i := range f.last {
			first, last = min(first, f.last[i].Load()), max(last, f.last[i].Load())
		}
		if done(time.Unix(0, first), time.Unix(0, last)) {
			return nil
		}
		if now.After(limit) {
			return fmt.Errorf("after %s", waitLimit)
		}
	}
	return nil
}

// others checks that the connections that stay allowed deliver.
func (f *flows) others(before uint64) error {
	return f.wait(func(_, _ time.Time) bool {
		now, err := f.t.arrived()
		return err == nil && now >= before+100*revokePorts
	})
}
