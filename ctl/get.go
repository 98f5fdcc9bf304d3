package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tortie/api"
	"tortie/store"
)

// annotationPolicyName is where the name of a policy is stored.
const annotationPolicyName = "projectcalico.org/metadata"

// scope is where objects are looked for.
type scope struct {
	namespace string
	all       bool // in every namespace
}

// found is a stored object.
type found struct {
	key api.Key
	doc document
}

func getCommand(o Options) *cobra.Command {
	var in scope
	var output string
	cmd := &cobra.Command{
		Use:     "get KIND [NAME...]",
		Short:   "Print objects of the datastore",
		Example: "  tortie get gnp -o wide\n  tortie get wep -A\n  tortie get tier default -o yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(output, formats); err != nil {
				return err
			}
			info, keys, err := targets(args, in.namespace)
			if err != nil {
				return err
			}
			if in.all && len(keys) > 0 && info.Namespaced {
				return errors.New("-A lists every namespace, so no name can be given with it")
			}
			p := printer{kind: info.Kind, format: output, single: len(keys) == 1}
			p.namespace = info.Namespaced && (in.all || cmd.Flags().Changed("namespace"))
			return o.with(cmd.Context(), func(ctx context.Context, s store.Store) error {
				objects, revision, problems := in.find(ctx, s, info, keys)
				if len(objects) > 0 || problems == nil {
					if err := p.writeTo(cmd.OutOrStdout(), objects, revision); err != nil {
						return err
					}
				}
				return problems
			})
		},
	}
	namespaceFlag(cmd, &in.namespace)
	cmd.Flags().BoolVarP(&in.all, "all-namespaces", "A", false, "objects of every namespace")
	cmd.Flags().StringVarP(&output, "output", "o", formats[0], strings.Join(formats, "|"))
	return cmd
}

// find returns the objects with the given keys, or all in scope if there are
// no keys, and the revision at which they were so. The error names those that
// there are not or that cannot be read; the others are returned nevertheless.
func (in scope) find(ctx context.Context, s store.Store, info api.KindInfo, keys []api.Key) ([]found, int64, error) {
	entries, revision, problems, err := in.entries(ctx, s, info, keys)
	if err != nil {
		return nil, 0, err
	}
	objects := make([]found, 0, len(entries))
	for _, e := range entries {
		f, err := decode(e)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		objects = append(objects, f)
	}
	if info.Kind == api.KindTier && len(keys) == 0 {
		slices.SortStableFunc(objects, func(a, b found) int { return compareOrder(a.doc, b.doc) })
	}
	return objects, revision, errors.Join(problems...)
}

// entries returns what find decodes; missing has an error for each key that
// there is not.
func (in scope) entries(ctx context.Context, s store.Store, info api.KindInfo, keys []api.Key) (entries []store.Entry, revision int64, missing []error, err error) {
	if len(keys) == 0 {
		prefix := api.Prefix(info.Kind)
		if info.Namespaced && !in.all {
			prefix += in.namespace + "/"
		}
		entries, revision, err = s.List(ctx, prefix)
		if err != nil {
			return nil, 0, nil, fmt.Errorf("get %s: %w", info.Plural, err)
		}
		if info.Kind == api.KindProfile {
			entries = append(entries, builtInProfile())
		}
		return entries, revision, nil, nil
	}
	for _, key := range keys {
		e, err := store.Find(ctx, s, key)
		if errors.Is(err, store.ErrNotFound) {
			if e = builtInProfile(); key.Path() != e.Path {
				missing = append(missing, err)
				continue
			}
			err = nil
		}
		if err != nil {
			return nil, 0, nil, err
		}
		entries = append(entries, e)
		revision = max(revision, e.Revision)
	}
	return entries, revision, missing, nil
}

// builtInProfile is shown as if it were stored.
func builtInProfile() store.Entry {
	key := api.Key{Kind: api.KindProfile, Name: api.DefaultAllowProfile}
	const value = `{"kind":"Profile","apiVersion":"` + api.APIVersion + `","metadata":{"name":"` + api.DefaultAllowProfile + `"},` +
		`"spec":{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]}}`
	return store.Entry{Path: key.Path(), Value: []byte(value), Revision: 1}
}

// decode reads a stored object for printing: with all its fields, known or
// not, as calicoctl shows them.
func decode(e store.Entry) (found, error) {
	o, _, err := api.DecodeKeep(e.Path, e.Value)
	if err != nil {
		return found{}, err
	}
	text, err := api.Encode(o)
	if err != nil {
		return found{}, err
	}
	f := found{key: o.Key()}
	if err := readJSON(text, &f.doc); err != nil {
		return found{}, fmt.Errorf("read %v: %w", f.key, err)
	}
	meta, ok := f.doc["metadata"].(map[string]any)
	if !ok {
		meta = map[string]any{}
		f.doc["metadata"] = meta
	}
	// The name of a policy is stored as an annotation, which is not shown.
	meta["name"] = f.key.Name
	if annotations, ok := meta["annotations"].(map[string]any); ok {
		delete(annotations, annotationPolicyName)
		if len(annotations) == 0 {
			delete(meta, "annotations")
		}
	}
	meta["resourceVersion"] = strconv.FormatInt(e.Revision, 10)
	return f, nil
}

// compareOrder orders tiers as they are gone through: those without an order
// come last.
func compareOrder(a, b document) int {
	order := func(d document) float64 {
		n, _ := d.at("spec.order").(json.Number)
		if v, err := n.Float64(); err == nil {
			return v
		}
		return math.Inf(1)
	}
	switch x, y := order(a), order(b); {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}
