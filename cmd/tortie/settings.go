package main

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tortie/config"
)

// global has the flags that every subcommand knows.
type global struct{ file, host, runDir, logLevel, logFormat string }

func (g *global) flags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVarP(&g.file, "config", "c", config.DefaultFile, "file with the settings of this host")
	f.StringVar(&g.host, "host", "", "name of this host, instead of FelixHostname")
	f.StringVar(&g.runDir, "run-dir", "", "folder of the processes' sockets, instead of RunDir")
	f.StringVar(&g.logLevel, "log-level", "", "Debug, Info, Warning or Error, instead of LogSeverityScreen")
	f.StringVar(&g.logFormat, "log-format", "text", "text or json")
}

// local reads the settings; a flag counts before all other sources.
func (g *global) local() (*config.Local, config.Config, error) {
	if !slices.Contains([]string{"", "text", "json"}, g.logFormat) {
		return nil, config.Config{}, fmt.Errorf("--log-format %s: want text or json", g.logFormat)
	}
	environ := override(os.Environ(), g.host, "FELIX_FELIXHOSTNAME", "FELIX_HOSTNAME")
	environ = override(environ, g.runDir, "FELIX_RUNDIR")
	environ = override(environ, g.logLevel, "FELIX_LOGSEVERITYSCREEN")
	local, err := config.Load(g.file, environ)
	if err != nil {
		return nil, config.Config{}, err
	}
	cfg, _ := local.With(nil, nil)
	if g.logLevel != "" && !strings.EqualFold(cfg.LogSeverityScreen, g.logLevel) {
		return nil, config.Config{}, fmt.Errorf("--log-level %s: want Debug, Info, Warning or Error", g.logLevel)
	}
	return local, cfg, nil
}

// hostName is the name of this host.
func (g *global) hostName() (string, error) {
	_, cfg, err := g.local()
	return cfg.Hostname, err
}

// override sets the first of the variables to value, if there is one, and
// removes the others, which mean the same.
func override(environ []string, value string, names ...string) []string {
	if value == "" {
		return environ
	}
	environ = slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(names, strings.ToUpper(name))
	})
	return append(environ, names[0]+"="+value)
}

func (g *global) log(cfg config.Config) (*slog.Logger, *slog.LevelVar) {
	level := &slog.LevelVar{}
	level.Set(cfg.LogLevel())
	o := &slog.HandlerOptions{Level: level}
	if g.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), level
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o)), level
}
