package ctl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"tortie/api"
	"tortie/store"
)

func initCommand(o Options) *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Put into the datastore what a new site needs",
		Long: `Put into the datastore what a new site needs: that it is ready, the built-in
tiers, and the configuration of all hosts. What exists is left as it is.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd.Context(), func(ctx context.Context, s store.Store) error {
				return each(siteObjects(), func(object api.Object) error {
					did, err := ensure(ctx, s, object)
					if err == nil {
						_, err = fmt.Fprintf(cmd.OutOrStdout(), "%v %s\n", object.Key(), did)
					}
					return err
				})
			})
		},
	}
}

// siteObjects are the objects that every site has.
func siteObjects() []api.Object {
	ready := true
	tier := func(name string, order float64, action api.Action) *api.Tier {
		return &api.Tier{Kind: api.KindTier, Meta: api.Meta{Name: name}, Spec: api.TierSpec{Order: &order, DefaultAction: action}}
	}
	return []api.Object{
		tier(api.DefaultTier, api.DefaultTierOrder, api.Deny),
		tier("kube-admin", 1000, api.Pass),
		tier("kube-baseline", 10000000, api.Pass),
		&api.FelixConfiguration{Kind: api.KindFelixConfiguration, Meta: api.Meta{Name: "default"}, Spec: api.FelixConfigurationSpec{}},
		// Last, for agents begin when it says that the datastore is ready.
		&api.ClusterInformation{
			Kind: api.KindClusterInformation, Meta: api.Meta{Name: "default"},
			Spec: api.ClusterInformationSpec{DatastoreReady: &ready},
		},
	}
}

// ensure creates an object that does not exist, and says what it found.
func ensure(ctx context.Context, s store.Store, o api.Object) (string, error) {
	done, err := store.Create(ctx, s, o)
	if !errors.Is(err, store.ErrExists) {
		return done.Did, err
	}
	e, err := store.Find(ctx, s, o.Key())
	if err != nil {
		return "", err
	}
	stored, _, err := api.DecodeKeep(e.Path, e.Value)
	if err != nil {
		return "", err
	}
	info, ok := stored.(*api.ClusterInformation)
	switch {
	case !ok || info.Spec.DatastoreReady != nil && *info.Spec.DatastoreReady:
		return "exists", nil
	case info.Spec.DatastoreReady != nil:
		return "exists; it says that the datastore is not ready, so that agents wait", nil
	}
	// An object that does not say so keeps agents waiting as well, though
	// nobody asked for that.
	o.(*api.ClusterInformation).Spec = info.Spec
	ready := true
	o.(*api.ClusterInformation).Spec.DatastoreReady = &ready
	o.Metadata().Labels, o.Metadata().Annotations = info.Meta.Labels, info.Meta.Annotations
	done, err = store.Replace(ctx, s, o)
	return done.Did, err
}
