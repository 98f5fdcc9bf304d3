package ctl

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/api"
	"tortie/store"
)

// TestKindNames: every kind is found by its name, its plural and its aliases,
// in any case, and no name stands for two kinds.
func TestKindNames(t *testing.T) {
	owner := map[string]api.Kind{}
	for _, info := range api.Kinds() {
		for _, name := range append([]string{singular(info.Kind), info.Plural}, strings.Fields(aliases[info.Kind])...) {
			if other, taken := owner[name]; taken && other != info.Kind {
				t.Errorf("%s is %s and %s", name, other, info.Kind)
			}
			owner[name] = info.Kind
			for _, spelled := range []string{name, strings.ToUpper(name)} {
				if got, err := lookup(spelled); err != nil || got.Kind != info.Kind {
					t.Errorf("%s: %v, %v", spelled, got.Kind, err)
				}
			}
		}
	}
	for kind := range aliases {
		if _, known := api.Info(kind); !known {
			t.Errorf("aliases of %s, which is not stored", kind)
		}
	}
	for kind := range columns {
		if _, known := api.Info(kind); !known {
			t.Errorf("columns of %s, which is not stored", kind)
		}
	}
}

// TestWideTables: the columns of the kinds that no script prints.
func TestWideTables(t *testing.T) {
	for _, tc := range []struct {
		kind            api.Kind
		name, spec      string
		heading, values string
	}{
		{
			api.KindHostEndpoint, "h1-eth0", `{"node":"h1","interfaceName":"*","expectedIPs":["192.0.2.1","2001:db8::1"]}`,
			"NAME NODE INTERFACE IPS PROFILES", "h1-eth0 h1 * 192.0.2.1,2001:db8::1 -",
		},
		{
			api.KindIPPool, "p", `{"cidr":"10.65.0.0/16","natOutgoing":true,"ipipMode":"CrossSubnet","disabled":true}`,
			"NAME CIDR NAT IPIPMODE VXLANMODE DISABLED DISABLEBGPEXPORT SELECTOR", "p 10.65.0.0/16 true CrossSubnet Never true false all()",
		},
		{
			api.KindNode, "h1", `{"bgp":{"asNumber":64512,"ipv4Address":"192.0.2.1/24","ipv6Address":"2001:db8::1/64"}}`,
			"NAME ASN IPV4 IPV6", "h1 64512 192.0.2.1/24 2001:db8::1/64",
		},
		{
			api.KindBGPPeer, "tor", `{"nodeSelector":"all()","peerIP":"2001:db8::9","asNumber":"1.10"}`,
			"NAME PEERIP NODE ASN", "tor 2001:db8::9 all() 1.10",
		},
		{api.KindBGPPeer, "all", `{"peerIP":"192.0.2.9","asNumber":64512}`, "NAME PEERIP NODE ASN", "all 192.0.2.9 (global) 64512"},
		{
			api.KindBGPConfiguration, "default", `{"nodeToNodeMeshEnabled":false}`,
			"NAME LOGSEVERITY MESHENABLED ASNUMBER", "default - false -",
		},
		{
			api.KindBGPFilter, "f", `{"exportV4":[{"action":"Accept"}],"exportV6":[{"action":"Reject"}]}`,
			"NAME NUMEXPORT NUMIMPORT", "f 2 0",
		},
		{api.KindProfile, "p", `{"labelsToApply":{"b":"2","a":"1"}}`, "NAME LABELS", "p a=1,b=2"},
	} {
		key := api.Key{Kind: tc.kind, Name: tc.name}
		value := `{"kind":"` + string(tc.kind) + `","apiVersion":"` + api.APIVersion + `","metadata":{"name":"` + tc.name + `"},"spec":` + tc.spec + `}`
		f, err := decode(store.Entry{Path: key.Path(), Value: []byte(value), Revision: 1})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := (printer{kind: tc.kind, format: "wide"}).writeTo(&out, []found{f}, 1); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			got = append(got, strings.Join(strings.Fields(line), " "))
		}
		if diff := cmp.Diff([]string{tc.heading, tc.values}, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", tc.kind, diff)
		}
	}
}

// FuzzPrint: nothing that is stored keeps get from printing, in any format, and
// a table has one line for each object.
func FuzzPrint(f *testing.F) {
	f.Add(0, `{"metadata":{"name":1,"annotations":[]},"spec":{"ports":[{}],"ipNetworks":{"a":null},"node":"a\nb"}}`)
	f.Add(5, `{"spec":[],"metadata":{"labels":{"a":{"b":[1e999]}}}}`)
	f.Fuzz(func(t *testing.T, kind int, value string) {
		infos := api.Kinds()
		info := infos[uint(kind)%uint(len(infos))]
		key := api.Key{Kind: info.Kind, Name: "x"}
		if info.Namespaced {
			key.Namespace = "y"
		}
		object, err := decode(store.Entry{Path: key.Path(), Value: []byte(value), Revision: 1})
		if err != nil {
			return
		}
		for _, format := range formats {
			var out bytes.Buffer
			if err := (printer{kind: info.Kind, format: format, namespace: true}).writeTo(&out, []found{object}, 1); err != nil {
				t.Errorf("%s: %v", format, err)
			}
			if n := strings.Count(out.String(), "\n"); (format == "table" || format == "wide") && n != 2 {
				t.Errorf("%s has %d lines:\n%s", format, n, &out)
			}
		}
	})
}

// FuzzSources: no file makes the reader of manifests panic, and each object is
// an object in JSON, or is reported.
func FuzzSources(f *testing.F) {
	f.Add("a: 1\n--- # x\n{b: [1]}\n...\n---\nkind: FooList\nitems:\n- {}\n- 1\n")
	f.Add(`{"a":1}{"kind":"List","items":[{"b":2}]} [1,"x"]`)
	f.Add("---\n\t{\n%YAML 1.2\n---")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range split("f", []byte(text)) {
			if o, _, err := s.decode("default"); err == nil && o.Key().Path() == "" {
				t.Errorf("%s is %v", s.where(), o.Key())
			}
		}
	})
}
