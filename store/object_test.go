package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"tortie/api"
	"tortie/store"
	"tortie/store/memory"
	"tortie/store/storetest"
)

func tier(name string) *api.Tier {
	return &api.Tier{Kind: api.KindTier, Meta: api.Meta{Name: name}}
}

var tierKey = api.Key{Kind: api.KindTier, Name: "t"}

func TestObjectLife(t *testing.T) {
	s, ctx := memory.New(), t.Context()
	o := tier("t")
	o.Meta.ResourceVersion = "77" // of where it was printed
	did := func(done store.Outcome, err error) string {
		return fmt.Sprintf("%s %d %v", done.Did, done.Revision, err)
	}
	if got := did(store.Create(ctx, s, o)); got != "created 2 <nil>" {
		t.Fatal(got)
	}
	if o.Meta.UID == "" || o.Meta.CreationTimestamp == "" || o.Spec.DefaultAction != api.Deny {
		t.Errorf("after Create: %+v", o)
	}
	e, err := store.Find(ctx, s, tierKey)
	if err != nil || e.Revision != 2 || e.Path != tierKey.Path() || !strings.Contains(string(e.Value), o.Meta.UID) {
		t.Errorf("%+v, %v", e, err)
	}
	if got := did(store.Apply(ctx, s, tier("t"))); got != "unchanged 2 <nil>" {
		t.Error(got)
	}
	changed := tier("t")
	changed.Spec.DefaultAction, changed.Meta.ResourceVersion = api.Pass, "2"
	if got := did(store.Replace(ctx, s, changed)); got != "configured 3 <nil>" {
		t.Error(got)
	}
	if got := did(store.Delete(ctx, s, tierKey, "3")); got != "deleted 4 <nil>" {
		t.Error(got)
	}
	if left := storetest.List(t, s, ""); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if got := did(store.Apply(ctx, s, tier("t"))); got != "created 5 <nil>" {
		t.Error(got)
	}
}

// TestObjectErrors: sentinels and texts that scripts match.
func TestObjectErrors(t *testing.T) {
	s, ctx := memory.New(), t.Context()
	storetest.Put(t, s, tierKey.Path(), `{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"t"},"spec":{"order":1}}`)
	storetest.Put(t, s, tierKey.Path()+"-2", `{}`) // has the other's path as a prefix
	absent := api.Key{Kind: api.KindNetworkPolicy, Namespace: "ns", Name: "p"}
	old := tier("t")
	old.Meta.ResourceVersion = "1"
	_, findErr := store.Find(ctx, s, absent)
	_, prefixErr := store.Find(ctx, s, api.Key{Kind: api.KindTier, Name: "t-"})
	_, createErr := store.Create(ctx, s, tier("t"))
	_, oddErr := store.Create(ctx, s, &api.Tier{Kind: "Nonsense", Meta: api.Meta{Name: "x"}})
	_, replaceErr := store.Replace(ctx, s, tier("gone"))
	_, oldErr := store.Apply(ctx, s, old)
	_, deleteErr := store.Delete(ctx, s, tierKey, "1")
	_, goneErr := store.Delete(ctx, s, absent, "")
	_, unknownErr := store.Delete(ctx, s, api.Key{Kind: "Nonsense", Name: "x"}, "")
	const isOld = "update conflict: Tier(t): resource version 1 is not the latest, which is 2"
	for name, test := range map[string]struct {
		err  error
		is   error
		text string
	}{
		"find":           {findErr, store.ErrNotFound, "resource does not exist: NetworkPolicy(ns/p) with error: there is no key " + absent.Path()},
		"find of prefix": {prefixErr, store.ErrNotFound, "resource does not exist: Tier(t-) with error: there is no key " + tierKey.Path() + "-"},
		"create":         {createErr, store.ErrExists, "resource already exists: Tier(t) with error: there is a key " + tierKey.Path()},
		"create unknown": {oddErr, nil, "create Nonsense(x): this kind is not stored"},
		"replace absent": {replaceErr, store.ErrNotFound, "resource does not exist: Tier(gone) with error: there is no key " + api.Prefix(api.KindTier) + "gone"},
		"apply old":      {oldErr, store.ErrConflict, isOld},
		"delete old":     {deleteErr, store.ErrConflict, isOld},
		"delete absent":  {goneErr, store.ErrNotFound, "resource does not exist: NetworkPolicy(ns/p) with error: there is no key " + absent.Path()},
		"unknown kind":   {unknownErr, nil, "read Nonsense(x): this kind is not stored"},
	} {
		if test.err == nil || test.err.Error() != test.text || test.is != nil && !errors.Is(test.err, test.is) {
			t.Errorf("%s: %v, want %q", name, test.err, test.text)
		}
	}
	s.Disconnect()
	if _, err := store.Apply(ctx, s, tier("t")); err == nil || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "not connected") {
		t.Errorf("without a connection: %v", err)
	}
}

// TestApplyKeepsUnknownFields: of what a user wrote only what the user changed
// is stored; identity stays too, and so does a key of an old release.
func TestApplyKeepsUnknownFields(t *testing.T) {
	s, ctx := memory.New(), t.Context()
	key := api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "openstack", Name: "h-openstack-vm-port"}
	storetest.Put(t, s, key.Path(), `{"kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3", "newTop": 1,
		"metadata": {"name": "h-openstack-vm-port", "namespace": "openstack", "uid": "u-1", "creationTimestamp": null, "newMeta": true},
		"spec": {"node": "h", "orchestrator": "openstack", "workload": "vm", "endpoint": "port", "interfaceName": "tap1",
			"ipNetworks": ["10.0.0.1/32", "fd00::1/128"], "allowedIps": ["10.0.0.9/32"], "newSpec": {"a": [1, 2]}}}`)
	wanted, _, err := api.DecodeManifest([]byte(`{"kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3",
		"metadata": {"name": "h-openstack-vm-port", "namespace": "openstack"},
		"spec": {"node": "h", "orchestrator": "openstack", "workload": "vm", "endpoint": "port", "interfaceName": "tap3",
			"ipNetworks": ["10.0.0.1/32", "fd00::1/128"], "allowedIps": ["10.0.0.9/32"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Apply(ctx, s, wanted); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		NewTop   int
		Metadata map[string]any
		Spec     map[string]any
	}
	if err := json.Unmarshal([]byte(storetest.List(t, s, "")[key.Path()]), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.NewTop != 1 || doc.Metadata["newMeta"] != true || doc.Metadata["uid"] != "u-1" ||
		fmt.Sprint(doc.Spec["newSpec"]) != "map[a:[1 2]]" || fmt.Sprint(doc.Spec["allowedIps"]) != "[10.0.0.9/32]" || doc.Spec["interfaceName"] != "tap3" {
		t.Errorf("stored: %+v", doc)
	}
}

// TestLegacyPolicyName: a policy that an old release stored as default.x is
// found, changed and deleted as x, where it is.
func TestLegacyPolicyName(t *testing.T) {
	s, ctx := memory.New(), t.Context()
	key := api.Key{Kind: api.KindNetworkPolicy, Namespace: "ns", Name: "x"}
	path := api.Prefix(key.Kind) + "ns/default.x"
	storetest.Put(t, s, path, `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.x","namespace":"ns"},"spec":{"order":1}}`)
	order := 2.0
	p := &api.Policy{Kind: key.Kind, Meta: api.Meta{Namespace: "ns", Name: "x"}, Spec: api.PolicySpec{Order: &order}}
	if done, err := store.Apply(ctx, s, p); err != nil || done.Did != "configured" {
		t.Errorf("%+v, %v", done, err)
	}
	if all := storetest.List(t, s, ""); len(all) != 1 || !strings.Contains(all[path], `"order":2`) {
		t.Errorf("stored: %v", all)
	}
	if _, err := store.Delete(ctx, s, key, ""); err != nil {
		t.Error(err)
	}
	if left := storetest.List(t, s, ""); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestUnreadable: what cannot be read can be replaced and deleted.
func TestUnreadable(t *testing.T) {
	s, ctx := memory.New(), t.Context()
	storetest.Put(t, s, tierKey.Path(), "rubbish")
	if done, err := store.Replace(ctx, s, tier("t")); err != nil || done.Did != "configured" {
		t.Errorf("%+v, %v", done, err)
	}
	storetest.Put(t, s, tierKey.Path(), "rubbish")
	if _, err := store.Delete(ctx, s, tierKey, ""); err != nil {
		t.Error(err)
	}
}

// busy is a store in which somebody else changes a key before each of the
// first few writes.
type busy struct {
	store.Store
	path  string
	times int
	count int
}

func (b *busy) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if b.count < b.times {
		b.count++
		value := fmt.Sprintf(`{"kind":"Tier","apiVersion":%q,"metadata":{"name":"t"},"spec":{"order":1,"defaultAction":"Deny","seen":%d}}`, api.APIVersion, b.count)
		if _, err := b.Store.Commit(ctx, store.Op{Path: b.path, Value: []byte(value), If: store.AnyRevision}); err != nil {
			return 0, err
		}
	}
	return b.Store.Commit(ctx, ops...)
}

// TestApplyAmongOthers: what others write between the reading and the writing
// is not overwritten; the apply begins again with it, a few times.
func TestApplyAmongOthers(t *testing.T) {
	ordered := func(order float64) *api.Tier {
		o := tier("t")
		o.Spec.Order = &order
		return o
	}
	s := &busy{Store: memory.New(), path: tierKey.Path(), times: 3}
	done, err := store.Apply(t.Context(), s, ordered(7))
	if err != nil || done.Did != "configured" {
		t.Errorf("%+v, %v", done, err)
	}
	e, err := store.Find(t.Context(), s, tierKey)
	if err != nil || e.Revision != done.Revision || !strings.Contains(string(e.Value), `"seen":3`) || !strings.Contains(string(e.Value), `"order":7`) {
		t.Errorf("%+v, %v", e, err)
	}
	for what, write := range map[string]func() (store.Outcome, error){
		"apply":   func() (store.Outcome, error) { return store.Apply(t.Context(), s, ordered(8)) },
		"replace": func() (store.Outcome, error) { return store.Replace(t.Context(), s, ordered(8)) },
		"delete":  func() (store.Outcome, error) { return store.Delete(t.Context(), s, tierKey, "") },
	} {
		s.times, s.count = 100, 0
		_, err := write()
		const want = "update conflict: Tier(t): it was changed by others during each of 5 attempts"
		if !errors.Is(err, store.ErrConflict) || err.Error() != want {
			t.Errorf("%s: got %v\nwant %s", what, err, want)
		}
	}
}

// TestApplyRace: of several writers each gets through.
func TestApplyRace(t *testing.T) {
	s := memory.New()
	done := make(chan error)
	for i := range 4 {
		go func() {
			o := tier("t")
			o.Meta.Labels = map[string]string{"by": fmt.Sprint(i)}
			_, err := store.Apply(t.Context(), s, o)
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got := len(storetest.List(t, s, "")); got != 1 {
		t.Errorf("%d keys, want 1", got)
	}
}
