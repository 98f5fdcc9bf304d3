package api

import (
	"encoding/json"
	"fmt"
)

// APIVersion is the apiVersion of every resource.
const APIVersion = "projectcalico.org/v3"

// Meta is the metadata of a resource. ResourceVersion is the revision of its
// key in the store; it is never part of what is stored.
type Meta struct {
	Name              string            `json:"name"`
	Namespace         string            `json:"namespace,omitempty" api:"shared"`
	GenerateName      string            `json:"generateName,omitempty"`
	UID               string            `json:"uid,omitempty"`
	ResourceVersion   string            `json:"-"`
	CreationTimestamp string            `json:"creationTimestamp,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
}

// Resource is one object of the data model. S is its spec; kinds that share a
// spec (NetworkPolicy and GlobalNetworkPolicy, say) share a Go type and differ
// in Kind.
type Resource[S any] struct {
	Kind   Kind
	Meta   Meta
	Spec   S
	Status json.RawMessage

	stored json.RawMessage // the document it was decoded from, if kept
	known  json.RawMessage // what was understood of it

	untyped bool // of a policy: Prepare gives it no types
}

// Object is any Resource.
type Object interface {
	Key() Key
	Metadata() *Meta
	json.Marshaler
}

// Key returns the resource's identity.
func (r *Resource[S]) Key() Key {
	return Key{Kind: r.Kind, Namespace: r.Meta.Namespace, Name: r.Meta.Name}
}

// Metadata returns the resource's metadata, for reading and changing.
func (r *Resource[S]) Metadata() *Meta { return &r.Meta }

// Problem says what is wrong with one field of an object, or that the feature
// it asks for is not built. The rest of the object stays in force.
type Problem struct {
	Field       string // path within the document, e.g. spec.ingress[0].source.nets[2]
	Value       string // as stored, shortened
	Reason      string
	Unsupported bool // the field is well formed; nothing enforces it yet
}

// String prints the problem as one line.
func (p Problem) String() string {
	if p.Value == "" {
		return fmt.Sprintf("%s: %s", p.Field, p.Reason)
	}
	return fmt.Sprintf("%s: %q: %s", p.Field, p.Value, p.Reason)
}
