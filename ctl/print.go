package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"tortie/api"
)

// formats are what get can print; the first is the default.
var formats = []string{"table", "wide", "yaml", "json", "name"}

// checkFormat refuses what --output cannot be.
func checkFormat(output string, known []string) error {
	if !slices.Contains(known, output) {
		return fmt.Errorf("--output %s: this format is not known; there are: %s", output, strings.Join(known, ", "))
	}
	return nil
}

// printer prints objects of one kind.
type printer struct {
	kind      api.Kind
	format    string
	single    bool // one object was asked for: no list around it
	namespace bool // tables begin with the namespace
}

func (p printer) writeTo(w io.Writer, objects []found, revision int64) error {
	docs := make([]document, 0, len(objects))
	for _, f := range objects {
		docs = append(docs, f.doc)
	}
	switch p.format {
	case "name":
		for _, f := range objects {
			if _, err := fmt.Fprintf(w, "%s/%s\n", singular(f.key.Kind), f.key.Name); err != nil {
				return err
			}
		}
		return nil
	case "yaml", "json":
		return p.writeDocuments(w, docs, revision)
	}
	return table{kind: p.kind, wide: p.format == "wide", namespace: p.namespace}.writeTo(w, docs)
}

func (p printer) writeDocuments(w io.Writer, docs []document, revision int64) error {
	var what any = document{
		"kind": string(p.kind) + "List", "apiVersion": api.APIVersion, "items": docs,
		"metadata": document{"resourceVersion": strconv.FormatInt(revision, 10)},
	}
	if p.single && len(docs) == 1 {
		what = docs[0]
	}
	if err := writeAs(w, p.format, what); err != nil {
		return fmt.Errorf("print %s: %w", p.kind, err)
	}
	return nil
}

// writeAs prints a value as JSON or YAML.
func writeAs(w io.Writer, format string, what any) error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(what); err != nil {
		return err
	}
	out := text.Bytes()
	if format == "yaml" {
		var err error
		if out, err = yaml.JSONToYAML(out); err != nil {
			return err
		}
	}
	_, err := w.Write(out)
	return err
}
