package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The binary is all that a host needs: it asks for no library and no file, as a
// root directory with nothing else in it shows; and each unit of systemd starts
// a command that there is.
//
// Promise B16: installing is a file and a unit for each process.
func TestInstall(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "tortie")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	libraries, err := file.ImportedLibraries()
	_ = file.Close()
	if err != nil || len(libraries) > 0 {
		t.Errorf("it needs %q, %v", libraries, err)
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("it needs a dynamic linker")
		}
	}
	if os.Geteuid() == 0 {
		alone := exec.Command("/tortie", "--version")
		alone.Path, alone.Err, alone.Dir = "/tortie", nil, "/"
		alone.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
		alone.Env = []string{}
		if out, err := alone.CombinedOutput(); err != nil || !strings.Contains(string(out), version) {
			t.Errorf("alone in a root directory: %v\n%s", err, out)
		}
	}
	units, err := filepath.Glob("../../packaging/systemd/*.service")
	if err != nil || len(units) != 3 {
		t.Fatalf("units %q, %v", units, err)
	}
	for _, unit := range units {
		checkUnit(t, unit, binary)
	}
}

// checkUnit checks that systemd takes a unit, where it is installed, and that
// what it starts is a command.
func checkUnit(t *testing.T, path, binary string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, start, found := strings.Cut(string(text), "\nExecStart=/usr/bin/tortie ")
	start, _, _ = strings.Cut(start, "\n")
	name, _ := strings.CutSuffix(filepath.Base(path), ".service")
	if c, _, err := rootCommand().Find(strings.Fields(start)); !found || err != nil || "tortie-"+c.Name() != name {
		t.Errorf("%s starts %q: %v", path, start, err)
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		return
	}
	unit := filepath.Join(t.TempDir(), filepath.Base(path))
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), "/usr/bin/tortie", binary)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit).CombinedOutput()
	if err != nil || strings.Contains(string(out), filepath.Base(path)) {
		t.Errorf("%s: %v\n%s", path, err, out)
	}
}
