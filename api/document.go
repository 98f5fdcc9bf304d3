package api

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// annotationPolicyName is where the name of a policy is stored.
const annotationPolicyName = "projectcalico.org/metadata"

// LabelTier is a label that is stored with each policy.
const LabelTier = "projectcalico.org/tier"

// decodeFunc makes an object of a document.
type decodeFunc func(d *decoder, kind Kind) (Object, error)

// document is a resource as it is stored.
type document[S any] struct {
	Kind       string `json:"kind" api:"shared"`
	APIVersion string `json:"apiVersion" api:"shared"`
	Metadata   Meta   `json:"metadata"`
	Spec       S      `json:"spec"`
	Status     Raw    `json:"status"`
}

// decodeAs reads a document whose spec is an S.
func decodeAs[S any](d *decoder, kind Kind) (Object, error) {
	r, err := readResource[S](d, kind)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func readResource[S any](d *decoder, kind Kind) (*Resource[S], error) {
	if d.peek() != '{' {
		return nil, errors.New("want a JSON object")
	}
	var doc document[S]
	d.structure(reflect.ValueOf(&doc).Elem())
	if !d.end() {
		return nil, cmp.Or(d.err, errJSON)
	}
	r := &Resource[S]{Kind: kind, Meta: doc.Metadata, Spec: doc.Spec}
	if doc.Status != "" {
		r.Status = json.RawMessage(doc.Status)
	}
	if doc.Kind != string(kind) && doc.Kind != "" {
		d.report(Problem{Field: "kind", Value: shorten(doc.Kind), Reason: "want " + string(kind) + ", as the key says"})
	}
	if doc.APIVersion != APIVersion && doc.APIVersion != "" {
		d.report(Problem{Field: "apiVersion", Value: shorten(doc.APIVersion), Reason: "want " + APIVersion})
	}
	if c, ok := any(&r.Spec).(interface{ closeSpec(*decoder, Kind) }); ok {
		c.closeSpec(d, kind)
	}
	return r, nil
}

// Decode makes an object of a stored value. Fields that cannot be read, or
// that nothing enforces yet, are reported as problems and the rest stays in
// force; it fails only where the path is not that of a resource or the
// document as a whole is unusable. value is not retained.
//
// The path says what the object is, except that the name of a policy is what
// the document says it is; so a policy stored by an old release under
// .../default.x is called x, and its Key().Path() is not where it is stored.
// Callers that follow the store identify an object by the key that ParsePath
// makes of its path.
func Decode(path string, value []byte) (Object, []Problem, error) {
	key, err := ParsePath(path)
	if err != nil {
		return nil, nil, fmt.Errorf("decode: %w", err)
	}
	return DecodeKey(key, value)
}

// DecodeKey is Decode for a path that ParsePath has made a key of.
func DecodeKey(key Key, value []byte) (Object, []Problem, error) {
	info := infoByKind[string(key.Kind)]
	if key.Kind == KindHostAddresses {
		info = &hostAddresses
	}
	if info == nil {
		return nil, nil, fmt.Errorf("decode %v: unknown kind", key)
	}
	d := newDecoder(value)
	defer d.release()
	o, err := info.decode(d, key.Kind)
	if err != nil {
		return nil, nil, fmt.Errorf("decode %v: %w", key, err)
	}
	m := o.Metadata()
	if m.Name != key.Name {
		if m.Name != "" {
			d.report(Problem{Field: "metadata.name", Value: shorten(m.Name), Reason: "want " + key.Name + ", as the key says"})
		}
		m.Name = key.Name
	}
	if m.Namespace != key.Namespace {
		if m.Namespace != "" {
			d.report(Problem{Field: "metadata.namespace", Value: shorten(m.Namespace), Reason: "want " + key.Namespace + ", as the key says"})
		}
		m.Namespace = key.Namespace
	}
	readPolicyName(o, true)
	d.reportUnbuilt(info, o)
	return o, d.problems, nil
}

// reportUnbuilt reports an object that nothing acts on as a whole.
func (d *decoder) reportUnbuilt(info *KindInfo, o Object) {
	name := o.Metadata().Name
	switch {
	case info.unbuilt:
		d.report(Problem{Field: "kind", Value: string(info.Kind), Reason: "nothing acts on this kind yet", Unsupported: true})
	case info.Kind == KindFelixConfiguration && nameGlobalOrNode(name) != "":
		d.report(Problem{Field: "metadata.name", Value: shorten(name), Reason: "only default and node.<name> are acted upon yet", Unsupported: true})
	}
}

// DecodeKeep is Decode for an object that will be changed and written back:
// what is written keeps the fields that are unknown or could not be read.
func DecodeKeep(path string, value []byte) (Object, []Problem, error) {
	o, problems, err := Decode(path, value)
	if err != nil {
		return nil, nil, err
	}
	return o, problems, o.(keeper).keep(slices.Clone(value))
}

// DecodeManifest makes an object of what a user wrote, as JSON. A field that
// no resource of the kind has is an error.
func DecodeManifest(data []byte) (Object, []Problem, error) {
	var h struct {
		Kind       string
		APIVersion string
		Metadata   struct{ Name, ResourceVersion string }
	}
	if err := json.Unmarshal(data, &h); err != nil {
		return nil, nil, fmt.Errorf("decode manifest: %w", err)
	}
	info := infoByKind[h.Kind]
	if info == nil || h.APIVersion != APIVersion {
		return nil, nil, fmt.Errorf("decode manifest: unknown kind %q of apiVersion %q", h.Kind, h.APIVersion)
	}
	d := newDecoder(data)
	defer d.release()
	o, err := info.decode(d, info.Kind)
	if err != nil {
		return nil, nil, fmt.Errorf("decode manifest: %s: %w", h.Kind, err)
	}
	if len(d.unknown) > 0 {
		return nil, nil, fmt.Errorf("decode manifest: %v: unknown field %s", o.Key(), strings.Join(d.unknown, ", "))
	}
	o.Metadata().ResourceVersion = h.Metadata.ResourceVersion
	doc, err := without(data, []string{"metadata.resourceVersion", "metadata.selfLink"})
	if err != nil {
		return nil, nil, fmt.Errorf("decode manifest: %v: %w", o.Key(), err)
	}
	readPolicyName(o, false)
	if err := o.(keeper).keep(doc); err != nil {
		return nil, nil, fmt.Errorf("decode manifest: %w", err)
	}
	d.reportUnbuilt(info, o)
	return o, d.problems, nil
}

// IsPolicy reports the kinds that are in a tier and whose name is stored as an
// annotation.
func (k Kind) IsPolicy() bool {
	return k == KindNetworkPolicy || k == KindGlobalNetworkPolicy || k == KindStagedNetworkPolicy || k == KindStagedGlobalNetworkPolicy
}

// readPolicyName takes the name of a policy from its annotation, which it
// removes; legacy names lose the tier they begin with.
func readPolicyName(o Object, legacy bool) {
	p, ok := o.(*Policy)
	if !ok {
		return
	}
	if stored, ok := p.Meta.Annotations[annotationPolicyName]; ok {
		delete(p.Meta.Annotations, annotationPolicyName)
		if len(p.Meta.Annotations) == 0 {
			p.Meta.Annotations = nil
		}
		var named struct{ Name string }
		if json.Unmarshal([]byte(stored), &named) == nil && named.Name != "" {
			p.Meta.Name = named.Name
		}
		return
	}
	if legacy && (p.Spec.Tier == "" || p.Spec.Tier == DefaultTier) {
		if name, ok := strings.CutPrefix(p.Meta.Name, DefaultTier+"."); ok && name != "" {
			p.Meta.Name = name
		}
	}
}
