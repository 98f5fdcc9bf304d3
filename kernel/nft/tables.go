package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// Options configure a Tables.
type Options struct {
	WorkloadPrefixes []string   // of interface names; what else the host has is not ours
	NATAddress       netip.Addr // with which masqueraded addresses of its family reach outside; none: that of the interface
	NATPorts         [2]uint16  // the ports that these then have, where there are ports; 0: any
	HostAction       string     // what becomes of packets to the host itself that egress policy allows: Drop, Return or Accept
	FailsafeIn       []Failsafe // what may reach the host whatever policy says
	FailsafeOut      []Failsafe // what the host may reach
	HostRate         int        // packets a second of each kind that costs the host most, of each endpoint; 0 for no limit
	DeniedEvents     bool       // packets that policy denies go to LogGroup, within limits
	Log              *slog.Logger
}

// Tables is this host's policy in the kernel: the tables inet tortie and arp
// tortie of the network namespace in which it was opened.
type Tables struct {
	opts Options
	log  *slog.Logger
	conn *conn

	have     *have // nil until read
	resync   bool  // read back before the next write
	all      bool  // compare everything, not only what is pending
	applied  bool  // the kernel has had a desired state from us in this life
	born     bool  // we made the table in this life
	earlier  bool  // the first read-back found tables of an earlier life
	bumpDue  bool  // the kernel has word of a commit that waits for a bump
	doubtful bool  // this Apply found what we did not write
	epoch    uint32
	notes    map[string]string

	memo    memo
	intent  intent
	todo    pending
	owned   map[string][]object // by program, the chains in the kernel that it has
	owners  map[object]int      // how many programs have a chain
	lists   map[string][]object // by owner, the lists that the chains in the kernel name
	counted map[string][]string // by program, the counters that it has
	counts  map[string]int      // how many times programs have a counter
	moved   []netip.Addr        // external addresses that lead elsewhere, not taken yet
	failed  error               // of the last Apply, where it could not finish
	bad     map[culprit]error   // refused by the kernel, or not expressible; tried again by each Apply
}

// Result says what an Apply did.
type Result struct {
	Writes       int // objects, rules and elements written
	Transactions int
	// Repaired: the kernel was read back and differed from what we last knew,
	// or, at the first Apply of a process, from what is wanted, or the process
	// before us ended between a commit and its bump. Connections may have been
	// judged by the wrong rules meanwhile: bump the epoch.
	Repaired bool
	// Bumped: the last transaction bumped the epoch itself.
	Bumped bool
}

// Counter is what a named counter shows.
type Counter struct {
	Packets uint64
	Bytes   uint64
}

// Open binds to the network namespace of the calling thread. It writes nothing.
func Open(opts Options) (*Tables, error) {
	if len(opts.WorkloadPrefixes) == 0 {
		return nil, errors.New("open nftables: no workload interface prefixes")
	}
	for _, p := range opts.WorkloadPrefixes {
		if p == "" || len(p) >= int(typeName.len) {
			return nil, fmt.Errorf("open nftables: workload interface prefix %q", p)
		}
	}
	if !slices.Contains([]string{HostDrop, HostReturn, HostAccept}, opts.HostAction) {
		return nil, fmt.Errorf("open nftables: host action %q", opts.HostAction)
	}
	c, err := dial()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	t := &Tables{opts: opts, log: opts.Log, conn: c, resync: true, all: true, notes: map[string]string{}, owned: map[string][]object{}, owners: map[object]int{}, lists: map[string][]object{}, counted: map[string][]string{}, counts: map[string]int{}, bad: map[culprit]error{}}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	t.intent.reset()
	t.todo.reset()
	return t, nil
}

// Close gives the socket back; the tables stay.
func (t *Tables) Close() error { return t.conn.close() }

// Skeleton installs the closed table if we have none: nothing passes to or
// from a workload interface until Apply. A table that is there is not touched.
func (t *Tables) Skeleton(ctx context.Context) (installed bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	exists, err := t.conn.hasChain(object{inet, chainForward})
	if err != nil || exists {
		return false, err
	}
	ch := newChanges()
	ch.tables = []family{inet, arp}
	for _, c := range renderSkeleton(t.opts.WorkloadPrefixes) {
		ch.chains[c.object] = diffChain(c, nil, false)
	}
	if err := t.conn.write(ch, newHave(), 0, nil); err != nil {
		return false, fmt.Errorf("install the closed table: %w", err)
	}
	t.born = true
	t.Resync()
	return true, nil
}

func (c *conn) hasChain(o object) (bool, error) {
	ask := func(w *writer) {
		w.str(unix.NFTA_CHAIN_TABLE, TableName)
		w.str(unix.NFTA_CHAIN_NAME, o.name)
	}
	found := false
	err := c.query(unix.NFT_MSG_GETCHAIN, false, o.family, ask, func(family, []byte) error {
		found = true
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return found, wrap("chain "+o.name, err)
}

// Resync makes the next Apply read the kernel back first and compare all of it.
func (t *Tables) Resync() { t.resync, t.all = true, true }

// Apply makes the kernel hold what want says, in one transaction. What the
// kernel refuses is left out, named in the error and tried again by the next
// Apply; a program that cannot be expressed denies everything. It returns nil
// if all of want is in the kernel.
func (t *Tables) Apply(ctx context.Context, want *desired.State) (res Result, err error) {
	if !t.resync {
		t.merge(want)
	}
	badBefore := maps.Clone(t.bad)
	t.doubtful = t.earlier && !t.applied
	if t.failed = t.settle(ctx, want, &res); t.failed != nil {
		return res, fmt.Errorf("apply nftables: %w", t.failed)
	}
	t.retryBad(ctx, want, badBefore, &res)
	t.applied = true
	var errs []error
	for _, err := range t.intent.errors {
		errs = append(errs, err)
	}
	for c, err := range t.bad {
		if c.removal == (object{}) { // of all that is wanted nothing is missing
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return res, fmt.Errorf("apply nftables: %w", errors.Join(errs...))
	}
	return res, nil
}

// Trouble says why the policy of an interface is not in the kernel as the last
// Apply was to put it there; nil if it is.
func (t *Tables) Trouble(name string) error {
	if t.failed != nil {
		return t.failed
	}
	if err := t.intent.errors["interface "+name]; err != nil {
		return err
	}
	if len(t.bad)+len(t.intent.errors) == 0 {
		return nil
	}
	i, ok := t.intent.ifaces[name]
	if !ok {
		return t.hostTrouble(name)
	}
	var errs []error
	for _, e := range append(t.elementsOf(name, i), renderLimits(t.intent.controls[name])...) {
		errs = append(errs, t.bad[culprit{set: e.set, elem: e.key}])
	}
	for _, id := range []desired.ProgramID{i.Ingress, i.Egress} {
		errs = append(errs, t.programTrouble(id))
	}
	return errors.Join(errs...)
}

// Bounds on how often one Apply tries again.
const (
	mostReads    = 3  // that insist on a generation; after them it is not checked
	mostAttempts = 40 // transactions refused
	mostRetries  = 8  // of what was refused before, removals apart
)

// settle commits until there is nothing left to write but what is bad.
func (t *Tables) settle(ctx context.Context, want *desired.State, res *Result) error {
	single := map[object]bool{}
	reads := 0
	for range mostAttempts {
		if err := ctx.Err(); err != nil {
			return err
		}
		gen := uint32(0)
		if t.resync || t.have == nil {
			var err error
			if gen, err = t.read(want, res); err != nil {
				return err
			}
			if reads++; reads > mostReads {
				gen = 0
			}
		}
		d := t.diff(want)
		if d.ch.empty() {
			t.finish(d)
			return nil
		}
		epoch := t.epoch
		err := t.commit(d, gen, single, res)
		if err == nil {
			t.finish(d)
			return nil
		}
		t.setEpoch(epoch)
		if err := t.blame(err, single, reads); err != nil {
			return err
		}
	}
	return errors.New("the kernel refuses one transaction after the other")
}

// commit writes what is new and nobody asks yet, if it must be there before,
// and then the rest.
func (t *Tables) commit(d *differ, gen uint32, single map[object]bool, res *Result) error {
	if ahead := d.ch.ahead(); ahead != nil {
		if err := t.conn.write(ahead, t.have, gen, single); err != nil {
			return err
		}
		t.note(d, ahead, res)
		if gen != 0 {
			gen++
		}
		if d.ch.empty() {
			return nil
		}
	}
	bumped := d.rejudge()
	if err := t.conn.write(d.ch, t.have, gen, single); err != nil {
		return err
	}
	t.note(d, d.ch, res)
	res.Bumped = bumped
	return nil
}

// note counts a transaction that the kernel took.
func (t *Tables) note(d *differ, ch *changes, res *Result) {
	t.moved = append(t.moved, d.moved...)
	res.Writes += ch.writes()
	res.Transactions++
	res.Bumped = false
	res.Repaired = res.Repaired || t.doubtful
	if sc := ch.sets[dueSet]; sc != nil && len(sc.adds) > 0 {
		t.bumpDue = true
	}
}

// blame decides what to do about a transaction that failed: nil to try again.
func (t *Tables) blame(err error, single map[object]bool, reads int) error {
	var no *refused
	switch {
	case errors.Is(err, errLost):
		t.Resync()
		if reads < mostReads {
			return nil
		}
		return err
	case !errors.As(err, &no):
		t.Resync()
		return err
	}
	stale := no.errno == unix.ERESTART || no.errno == unix.ENOENT || no.errno == unix.EEXIST ||
		no.errno == unix.EBUSY || no.errno == unix.ENFILE
	switch {
	case stale && reads <= mostReads && (no.errno == unix.ERESTART || reads == 0):
		t.log.Info("nftables changed under us, reading them back", "refused", err)
		t.Resync()
		return nil
	case no.op.many:
		single[no.op.object] = true
		return nil
	case no.op.culprit == (culprit{}):
		t.Resync()
		return err
	}
	if s, _, ok := describeSet(no.op.set); ok {
		err = fmt.Errorf("element %s of %s: %w", s.elemText(no.op.elem), s.name, err)
	}
	if no.op.removal != (object{}) {
		t.log.Warn("the kernel keeps what nothing needs any more", "error", err)
	} else {
		t.log.Error("the kernel refuses part of the policy", "error", err)
	}
	t.setBad(no.op.culprit, err)
	return nil
}

func (t *Tables) setBad(c culprit, err error) {
	t.bad[c] = err
	if c.program != "" {
		t.touchProgram(target(c.program))
	}
}

func (t *Tables) clearBad(c culprit) {
	delete(t.bad, c)
	if c.program != "" {
		t.touchProgram(target(c.program))
	}
}

// retryBad tries each thing that an earlier Apply was refused once more, by
// itself, so that it cannot keep the rest from the kernel; but all removals
// together, since what is to go may name each other.
func (t *Tables) retryBad(ctx context.Context, want *desired.State, before map[culprit]error, res *Result) {
	retry := func(cs map[culprit]error, single object) {
		for c := range cs {
			t.clearBad(c)
		}
		if ctx.Err() != nil || !t.retry(want, single, res) {
			for c, err := range cs {
				t.setBad(c, err)
			}
		}
	}
	tried, remove := 0, false
	for c, err := range before {
		switch {
		case t.bad[c] == nil:
		case c.removal != (object{}):
			remove = true
		case tried < mostRetries:
			tried++
			retry(map[culprit]error{c: err}, c.set)
		}
	}
	if remove {
		removals := maps.Clone(t.bad)
		maps.DeleteFunc(removals, func(c culprit, _ error) bool { return c.removal == (object{}) })
		t.all = true
		retry(removals, object{})
	}
}

// retry writes what there is to write, or nothing.
func (t *Tables) retry(want *desired.State, single object, res *Result) bool {
	d := t.diff(want)
	if d.tightens() {
		d.due()
	}
	if !d.ch.empty() {
		if err := t.conn.write(d.ch, t.have, 0, map[object]bool{single: true}); err != nil {
			t.log.Debug("still refused", "error", err)
			if no := (*refused)(nil); !errors.As(err, &no) {
				t.Resync()
			}
			return false
		}
		t.note(d, d.ch, res)
	}
	t.finish(d)
	return true
}

// read reads the kernel back, and finds out whether a foreign hand was there.
func (t *Tables) read(want *desired.State, res *Result) (gen uint32, err error) {
	h, gen, err := t.conn.readBack()
	if err == nil {
		err = t.readNotes()
	}
	if err != nil {
		return 0, err
	}
	h.checkHooks()
	switch {
	case t.applied && !t.have.equal(h):
		res.Repaired, t.doubtful = true, true
	case t.have == nil:
		t.earlier = len(h.tables) > 0 && !t.born
		t.doubtful = t.earlier
	}
	if due := h.sets[dueSet]; due != nil && due.len() > 0 && !t.bumpDue {
		res.Repaired, t.bumpDue = true, true
	}
	t.have, t.resync, t.all = h, false, true
	t.conn.gen = gen
	if t.epoch == 0 {
		t.epoch = newEpoch(h.epochs)
	}
	t.merge(want)
	return gen, nil
}
