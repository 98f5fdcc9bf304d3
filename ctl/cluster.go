package ctl

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"tortie/api"
	"tortie/explain"
	"tortie/store"
)

// cluster is what explain answers from.
type cluster struct {
	*explain.Cluster
	objects  map[api.Key]api.Object
	problems map[api.Key][]api.Problem
}

// policyKinds are the kinds that decide on connections.
var policyKinds = []api.Kind{
	api.KindWorkloadEndpoint, api.KindHostEndpoint, api.KindTier, api.KindGlobalNetworkPolicy, api.KindNetworkPolicy,
	api.KindStagedGlobalNetworkPolicy, api.KindStagedNetworkPolicy, api.KindStagedKubernetesNetworkPolicy,
	api.KindProfile, api.KindGlobalNetworkSet, api.KindNetworkSet,
	api.KindIPPool, api.KindNode, api.KindFelixConfiguration, // say how addresses are translated
	api.KindHostAddresses,
}

func newCluster() *cluster {
	return &cluster{explain.New(), map[api.Key]api.Object{}, map[api.Key][]api.Problem{}}
}

func (c *cluster) put(o api.Object, problems []api.Problem) {
	if !slices.Contains(policyKinds, o.Key().Kind) {
		return
	}
	c.Put(o)
	c.objects[o.Key()], c.problems[o.Key()] = o, problems
}

// readStore returns what is stored, all resources as of one revision. What cannot
// be read is left out, as hosts leave it out, and w is told.
func readStore(ctx context.Context, s store.Store, w io.Writer) (*cluster, error) {
	var entries []store.Entry
	for _, prefix := range []string{api.Root, api.AddressesRoot} {
		some, _, err := s.List(ctx, prefix)
		if err != nil {
			return nil, fmt.Errorf("read the datastore: %w", err)
		}
		entries = append(entries, some...)
	}
	c := newCluster()
	for _, e := range entries {
		key, err := api.ParsePath(e.Path)
		if err != nil || !slices.Contains(policyKinds, key.Kind) {
			continue
		}
		o, problems, err := api.DecodeKey(key, e.Value)
		if err != nil {
			_, _ = fmt.Fprintf(w, "Warning: %v is left out: %s\n", key, oneLine(err))
			continue
		}
		c.put(o, problems)
	}
	return c, nil
}

// read returns what is in files or, if there are none, in the datastore.
func (o Options) read(cmd *cobra.Command, files []string, namespace string) (c *cluster, err error) {
	if len(files) > 0 {
		return readFiles(files, cmd.InOrStdin(), namespace)
	}
	err = o.with(cmd.Context(), func(ctx context.Context, s store.Store) error {
		c, err = readStore(ctx, s, cmd.ErrOrStderr())
		return err
	})
	return c, err
}

// readFiles returns what there would be if the files were applied to a new
// site, with the defaults that are filled in then.
func readFiles(files []string, stdin io.Reader, namespace string) (*cluster, error) {
	all, _, err := readManifests(files, stdin, namespace)
	if err != nil {
		return nil, err
	}
	c := newCluster()
	for _, o := range siteObjects() {
		c.put(o, nil)
	}
	for _, m := range all {
		api.Prepare(m.object, time.Now(), "")
		c.put(m.object, m.problems)
	}
	return c, nil
}

// staged is the cluster with its staged policies in force.
func (c *cluster) staged() *cluster { return &cluster{c.Staged(), c.objects, c.problems} }

func (c *cluster) endpoint(key api.Key) *api.WorkloadEndpoint {
	w, _ := c.objects[key].(*api.WorkloadEndpoint)
	return w
}

// profiles are those of an endpoint of either kind.
func (c *cluster) profiles(key api.Key) []string {
	switch o := c.objects[key].(type) {
	case *api.WorkloadEndpoint:
		return o.Spec.Profiles
	case *api.HostEndpoint:
		return o.Spec.Profiles
	}
	return nil
}

// unreadable are the fields with which a policy selects no endpoint, if there
// is a problem with one.
var unreadable = []string{"spec.selector", "spec.namespaceSelector", "spec.serviceAccountSelector"}

// kindsOfPolicy are in the order in which they are asked.
var kindsOfPolicy = []explain.Kind{explain.Untracked, explain.PreDNAT, explain.Normal, explain.Forward}

// concerning returns the problems of an endpoint and of all that applies to it
// in a direction, and those that keep a policy from applying to it.
func (c *cluster) concerning(endpoint api.Key, dir api.Direction) []ObjectProblem {
	keys := []api.Key{endpoint}
	for _, kind := range kindsOfPolicy {
		for _, s := range c.StagesOf(endpoint, dir, kind) {
			if len(s.Policies) > 0 {
				keys = append(keys, api.Key{Kind: api.KindTier, Name: s.Tier})
			}
			for _, p := range s.Policies {
				keys = append(keys, p.Key())
			}
		}
	}
	for _, name := range c.profiles(endpoint) {
		keys = append(keys, api.Key{Kind: api.KindProfile, Name: name})
	}
	var found []ObjectProblem
	for _, k := range keys {
		for _, p := range c.problems[k] {
			found = addProblems(found, []ObjectProblem{{k, p.Field, p.Value, p.Reason}})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(c.problems), api.Key.Compare) {
		policy, ok := c.objects[k].(*api.Policy)
		if !ok || k.IsStaged() || slices.Contains(keys, k) || !c.mightSelect(policy, endpoint) {
			continue
		}
		for _, p := range c.problems[k] {
			if slices.Contains(unreadable, p.Field) {
				found = append(found, ObjectProblem{k, p.Field, p.Value, p.Reason + "; so it applies to no endpoint"})
			}
		}
	}
	return found
}

// mightSelect reports a policy that would apply to an endpoint, were it not for
// what cannot be read or is not built.
func (c *cluster) mightSelect(p *api.Policy, endpoint api.Key) bool {
	s := p.Spec.Selector
	return (p.Meta.Namespace == "" || p.Meta.Namespace == endpoint.Namespace) && (s.Expr == nil || s.Expr.Match(c.Labels(endpoint)))
}

// addProblems adds those that are not there yet.
func addProblems(to, more []ObjectProblem) []ObjectProblem {
	for _, p := range more {
		if !slices.Contains(to, p) {
			to = append(to, p)
		}
	}
	return to
}
