package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	if err := store.Create(ctx, s, o); err != nil {
		t.Fatal(err)
	}
	if o.Meta.ResourceVersion != "2" || o.Meta.UID == "" || o.Meta.CreationTimestamp == "" || o.Spec.DefaultAction != api.Deny {
		t.Errorf("after Create: %+v", o)
	}
	got, err := store.Get(ctx, s, tierKey)
	if err != nil {
		t.Fatal(err)
	}
	read := got.(*api.Tier)
	if diff := cmp.Diff(o.Meta, read.Meta); diff != "" {
		t.Error(diff)
	}
	read.Spec.DefaultAction = api.Pass
	if err := store.Update(ctx, s, read); err != nil || read.Meta.ResourceVersion != "3" {
		t.Errorf("update: %v, version %s", err, read.Meta.ResourceVersion)
	}
	if err := store.Delete(ctx, s, tierKey, "3"); err != nil {
		t.Error(err)
	}
	if left := storetest.List(t, s, ""); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestObjectErrors: sentinels and texts that scripts match.
func TestObjectErrors(t *testing.T) {
	s, ctx := memory.New(), t.Context()
	old := tier("t")
	if err := store.Create(ctx, s, old); err != nil {
		t.Fatal(err)
	}
	if err := store.Create(ctx, s, tier("t-2")); err != nil { // has the other's path as a prefix
		t.Fatal(err)
	}
	newer := *old
	if err := store.Update(ctx, s, &newer); err != nil {
		t.Fatal(err)
	}
	absent := api.Key{Kind: api.KindNetworkPolicy, Namespace: "ns", Name: "p"}
	gone := tier("gone")
	gone.Meta.ResourceVersion = "2"
	_, getErr := store.Get(ctx, s, absent)
	_, prefixErr := store.Get(ctx, s, api.Key{Kind: api.KindTier, Name: "t-"})
	for name, test := range map[string]struct {
		err  error
		is   error
		text string
	}{
		"get":           {getErr, store.ErrNotFound, "resource does not exist: NetworkPolicy(ns/p) with error: "},
		"get of prefix": {prefixErr, store.ErrNotFound, "resource does not exist: Tier(t-) with error: "},
		"create":        {store.Create(ctx, s, tier("t")), store.ErrExists, "resource already exists: Tier(t) with error: "},
		"update":        {store.Update(ctx, s, old), store.ErrConflict, "update conflict: Tier(t)"},
		"update absent": {store.Update(ctx, s, gone), store.ErrNotFound, "resource does not exist: Tier(gone) with error: "},
		"apply old":     {store.Apply(ctx, s, old), store.ErrConflict, "update conflict: Tier(t)"},
		"apply absent":  {store.Apply(ctx, s, gone), store.ErrNotFound, "resource does not exist: Tier(gone) with error: "},
		"delete old":    {store.Delete(ctx, s, tierKey, old.Meta.ResourceVersion), store.ErrConflict, "update conflict: Tier(t)"},
		"delete absent": {store.Delete(ctx, s, absent, ""), store.ErrNotFound, "resource does not exist: NetworkPolicy(ns/p) with error: "},
		"create versed": {store.Create(ctx, s, gone), nil, "create Tier(gone): it has resource version 2"},
		"update unread": {store.Update(ctx, s, tier("t")), nil, `update Tier(t): resource version "": want`},
		"unknown kind":  {store.Delete(ctx, s, api.Key{Kind: "Nonsense", Name: "x"}, ""), nil, "get Nonsense(x): this kind is not stored"},
	} {
		if test.err == nil || !strings.HasPrefix(test.err.Error(), test.text) || test.is != nil && !errors.Is(test.err, test.is) {
			t.Errorf("%s: %v, want %q", name, test.err, test.text)
		}
	}
	s.Disconnect()
	if err := store.Apply(ctx, s, tier("t")); err == nil || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "not connected") {
		t.Errorf("without a connection: %v", err)
	}
}

// TestUpdateKeepsUnknownFields: also by Apply of what a user wrote, which
// keeps identity and status too.
func TestUpdateKeepsUnknownFields(t *testing.T) {
	s, ctx := memory.New(), t.Context()
	key := api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "openstack", Name: "h-openstack-vm-port"}
	storetest.Put(t, s, key.Path(), `{"kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3", "newTop": 1,
		"metadata": {"name": "h-openstack-vm-port", "namespace": "openstack", "uid": "u-1", "creationTimestamp": null, "newMeta": true},
		"spec": {"node": "h", "orchestrator": "openstack", "workload": "vm", "endpoint": "port", "interfaceName": "tap1",
			"ipNetworks": ["10.0.0.1/32", "fd00::1/128"], "allowedIps": ["10.0.0.9/32"], "newSpec": {"a": [1, 2]}}}`)
	o, err := store.Get(ctx, s, key)
	if err != nil {
		t.Fatal(err)
	}
	o.(*api.WorkloadEndpoint).Spec.InterfaceName = "tap2"
	if err := store.Update(ctx, s, o); err != nil {
		t.Fatal(err)
	}
	check := func(iface string) {
		t.Helper()
		var doc struct {
			NewTop   int
			Metadata map[string]any
			Spec     map[string]any
		}
		if err := json.Unmarshal([]byte(storetest.List(t, s, "")[key.Path()]), &doc); err != nil {
			t.Fatal(err)
		}
		if doc.NewTop != 1 || doc.Metadata["newMeta"] != true || doc.Metadata["uid"] != "u-1" ||
			fmt.Sprint(doc.Spec["newSpec"]) != "map[a:[1 2]]" || fmt.Sprint(doc.Spec["allowedIps"]) != "[10.0.0.9/32]" || doc.Spec["interfaceName"] != iface {
			t.Errorf("stored: %+v", doc)
		}
	}
	check("tap2")
	wanted, _, err := api.DecodeManifest([]byte(`{"kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3",
		"metadata": {"name": "h-openstack-vm-port", "namespace": "openstack"},
		"spec": {"node": "h", "orchestrator": "openstack", "workload": "vm", "endpoint": "port", "interfaceName": "tap3",
			"ipNetworks": ["10.0.0.1/32", "fd00::1/128"], "allowedIps": ["10.0.0.9/32"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Apply(ctx, s, wanted); err != nil {
		t.Fatal(err)
	}
	check("tap3")
}

func TestListObjects(t *testing.T) {
	s, ctx := memory.New(), t.Context()
	for _, path := range []string{"a/1", "a/2", "b/1"} {
		namespace, name, _ := strings.Cut(path, "/")
		set := &api.NetworkSet{Kind: api.KindNetworkSet, Meta: api.Meta{Namespace: namespace, Name: name}}
		if err := store.Apply(ctx, s, set); err != nil {
			t.Fatal(err)
		}
	}
	last := storetest.Put(t, s, api.Prefix(api.KindNetworkSet)+"a/3", "rubbish")
	names := func(namespace string) (names []string) {
		objects, revision, err := store.List(ctx, s, api.KindNetworkSet, namespace)
		if revision != last || namespace != "b" && (err == nil || !strings.Contains(err.Error(), "NetworkSet(a/3)")) {
			t.Errorf("list of %q: revision %d, error %v", namespace, revision, err)
		}
		for _, o := range objects {
			names = append(names, o.Key().String())
		}
		return names
	}
	for namespace, want := range map[string][]string{
		"":  {"NetworkSet(a/1)", "NetworkSet(a/2)", "NetworkSet(b/1)"},
		"a": {"NetworkSet(a/1)", "NetworkSet(a/2)"},
		"b": {"NetworkSet(b/1)"},
	} {
		if diff := cmp.Diff(want, names(namespace)); diff != "" {
			t.Error(diff)
		}
	}
	// What cannot be read can be deleted.
	if err := store.Delete(ctx, s, api.Key{Kind: api.KindNetworkSet, Namespace: "a", Name: "3"}, ""); err != nil {
		t.Error(err)
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
			done <- store.Apply(t.Context(), s, o)
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
