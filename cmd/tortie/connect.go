package main

import (
	"context"
	"log/slog"

	"tortie/config"
	"tortie/store"
	"tortie/store/etcd"
)

// process is what a long-running subcommand works with.
type process struct {
	local *config.Local
	cfg   config.Config
	log   *slog.Logger
	level *slog.LevelVar
	store store.Store
	close func()
}

func (g *global) process() (*process, error) {
	p := &process{}
	var err error
	if p.local, p.cfg, err = g.local(); err != nil {
		return nil, err
	}
	p.log, p.level = g.log(p.cfg)
	p.store, p.close, err = connect(p.cfg, p.log)
	return p, err
}

// open connects an operator's command to the datastore. What keeps it from
// doing so is its error, not a line in a log.
func (g *global) open(context.Context) (store.Store, func(), error) {
	_, cfg, err := g.local()
	if err != nil {
		return nil, nil, err
	}
	return connect(cfg, slog.New(slog.DiscardHandler))
}

func (g *global) socketDir() (string, error) {
	_, cfg, err := g.local()
	return cfg.RunDir, err
}

func connect(cfg config.Config, log *slog.Logger) (store.Store, func(), error) {
	s, err := etcd.Open(etcd.Config{
		Endpoints: cfg.EtcdEndpoints,
		CAFile:    cfg.EtcdCAFile, CertFile: cfg.EtcdCertFile, KeyFile: cfg.EtcdKeyFile,
		Username: cfg.EtcdUsername, Password: string(cfg.EtcdPassword),
		Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	return s, func() { _ = s.Close() }, nil
}
