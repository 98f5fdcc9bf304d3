package link

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// thread runs functions on one thread that stays in one network namespace.
type thread struct {
	work chan func()
}

// startThread starts a thread in the namespace of the calling thread.
func startThread() (*thread, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("find the network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	t := &thread{work: make(chan func())}
	started := make(chan error)
	go t.run(ns, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return t, nil
}

func (t *thread) run(ns netns.NsHandle, started chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	here, err := netns.Get()
	if err == nil {
		if !here.Equal(ns) {
			err = netns.Set(ns)
		}
		_ = here.Close()
	}
	if err != nil {
		started <- fmt.Errorf("enter the network namespace: %w", err)
		return
	}
	started <- nil
	for f := range t.work {
		f()
	}
}

// do runs f there and waits for it.
func (t *thread) do(f func()) {
	done := make(chan struct{})
	t.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

func (t *thread) stop() { close(t.work) }
