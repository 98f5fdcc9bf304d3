package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"tortie/api"
	"tortie/store"
)

// manifest is an object that a user wrote, and where.
type manifest struct {
	source
	object   api.Object
	problems []api.Problem // fields that nothing enforces yet
}

// readManifests reads and validates all objects of the given files. If there
// is anything wrong with any of them, the error has a line for each problem.
// What is well formed, but nothing enforces it yet, is a warning.
func readManifests(paths []string, stdin io.Reader, namespace string) (all []manifest, warnings []string, err error) {
	sources, err := readSources(paths, stdin)
	if err != nil {
		return nil, nil, err
	}
	var problems []error
	first := map[api.Key]source{}
	for _, s := range sources {
		o, found, err := s.decode(namespace)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %s", s.where(), oneLine(err)))
			continue
		}
		for _, p := range found {
			line := fmt.Sprintf("%s: %v: %v", s.where(), o.Key(), p)
			if p.Unsupported {
				warnings = append(warnings, line)
			} else {
				problems = append(problems, errors.New(line))
			}
		}
		if other, twice := first[o.Key()]; twice {
			problems = append(problems, fmt.Errorf("%s: %v is also in %s", s.where(), o.Key(), other.where()))
		}
		first[o.Key()] = s
		all = append(all, manifest{s, o, found})
	}
	return all, warnings, errors.Join(problems...)
}

// decode makes an object of a source and returns all that is to be said of it.
func (s source) decode(namespace string) (api.Object, []api.Problem, error) {
	if s.err != nil {
		return nil, nil, s.err
	}
	o, problems, err := api.DecodeManifest(s.json)
	if err != nil {
		return nil, nil, err
	}
	if info, _ := api.Info(o.Key().Kind); info.Namespaced && o.Key().Namespace == "" {
		o.Metadata().Namespace = namespace
	}
	// Both look at each field; what one has said the other need not repeat.
	for _, p := range api.Validate(o) {
		if !slices.ContainsFunc(problems, func(known api.Problem) bool { return known.Field == p.Field }) {
			problems = append(problems, p)
		}
	}
	return o, problems, nil
}

// checkTiers reports policies that would be created in a tier that does not
// exist: they would be enforced after all other tiers, which nobody means.
func checkTiers(all []manifest, exists func(api.Key) (bool, error)) error {
	known := map[string]bool{"": true, api.DefaultTier: true}
	for _, m := range all {
		if m.object.Key().Kind == api.KindTier {
			known[m.object.Key().Name] = true
		}
	}
	var problems []error
	for _, m := range all {
		p, ok := m.object.(*api.Policy)
		if !ok || known[p.Spec.Tier] {
			continue
		}
		there, err := exists(api.Key{Kind: api.KindTier, Name: p.Spec.Tier})
		known[p.Spec.Tier] = there
		if err == nil && !there {
			there, err = exists(p.Key())
		}
		switch {
		case err != nil:
			return err
		case !there:
			problems = append(problems, fmt.Errorf("%s: %v: spec.tier: %q: there is no such tier", m.where(), p.Key(), p.Spec.Tier))
		}
	}
	return errors.Join(problems...)
}

// stored tells of objects whether the datastore has them.
func stored(ctx context.Context, s store.Store) func(api.Key) (bool, error) {
	return func(key api.Key) (bool, error) {
		_, err := store.Find(ctx, s, key)
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		return err == nil, err
	}
}

func checkAllWritable(operation string, all []manifest) error {
	for _, m := range all {
		if err := checkWritable(operation, m.object.Key()); err != nil {
			return fmt.Errorf("%s: %w", m.where(), err)
		}
	}
	return nil
}

// checkWritable says why an object cannot be written by operators.
func checkWritable(operation string, key api.Key) error {
	switch {
	case key.Kind == api.KindClusterInformation:
		return notSupported(operation, key, "it is read-only")
	case key.Kind == api.KindProfile && key.Name == api.DefaultAllowProfile:
		return notSupported(operation, key, "it is built in")
	}
	return nil
}

// builtInTiers are made by init and never deleted.
var builtInTiers = []string{api.DefaultTier, "kube-admin", "kube-baseline"}

// checkTierUnused says which policies still are in a tier.
func checkTierUnused(ctx context.Context, s store.Store, key api.Key) error {
	var in []string
	for _, info := range api.Kinds() {
		if !info.Kind.IsPolicy() {
			continue
		}
		entries, _, err := s.List(ctx, api.Prefix(info.Kind))
		if err != nil {
			return fmt.Errorf("look for policies in %v: %w", key, err)
		}
		for _, e := range entries {
			o, _, err := api.Decode(e.Path, e.Value)
			if err != nil {
				continue // what cannot be read is in no tier
			}
			if p, ok := o.(*api.Policy); ok && p.Spec.Tier == key.Name {
				in = append(in, p.Key().String())
			}
		}
	}
	if len(in) == 0 {
		return nil
	}
	return notSupported("delete", key, "policies are in it: "+strings.Join(in, ", "))
}
