package ctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// source is one object of a file as JSON, and where it stands.
type source struct {
	file string
	doc  int // from 1
	item int // from 1 in a list, else 0
	json []byte
	err  error // why there is no JSON
}

// where names the place for messages.
func (s source) where() string {
	if s.item > 0 {
		return fmt.Sprintf("%s: document %d, item %d", s.file, s.doc, s.item)
	}
	return fmt.Sprintf("%s: document %d", s.file, s.doc)
}

// readSources reads all objects of the given files and folders; "-" is stdin.
func readSources(paths []string, stdin io.Reader) ([]source, error) {
	var all []source
	for _, path := range paths {
		files, err := expand(path)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			var data []byte
			name := file
			if file == "-" {
				name = "stdin"
				data, err = io.ReadAll(stdin)
			} else {
				data, err = os.ReadFile(file)
			}
			if err != nil {
				return nil, fmt.Errorf("read manifest: %w", err)
			}
			all = append(all, split(name, data)...)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: there is no object in it", strings.Join(paths, ", "))
	}
	return all, nil
}

// expand returns the manifests in a folder, sorted, or the path itself.
func expand(path string) ([]string, error) {
	if path == "-" {
		return []string{path}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path) // sorted
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	return files, nil
}

// split cuts a file into its objects: documents of YAML or JSON, each an
// object, a list of objects (kind List or …List), or a bare sequence.
func split(file string, data []byte) []source {
	docs := splitYAML(data)
	if t := bytes.TrimSpace(data); len(t) > 0 && (t[0] == '{' || t[0] == '[') {
		if values, err := splitJSON(data); err == nil {
			docs = values
		}
	}
	var all []source
	n := 0
	for _, doc := range docs {
		// YAML reads JSON too, and its strict form refuses a key that is
		// there twice.
		text, err := yaml.YAMLToJSONStrict(doc)
		if err == nil && bytes.Equal(text, []byte("null")) {
			continue // only comments
		}
		n++
		s := source{file: file, doc: n, json: text, err: err}
		all = append(all, s.items()...)
	}
	return all
}

// splitYAML cuts at the document markers. Each part begins with as many empty
// lines as there are before it, so that messages give the file's line.
func splitYAML(data []byte) [][]byte {
	var docs [][]byte
	var doc []byte
	line := 0
	for l := range bytes.Lines(data) {
		marker := bytes.TrimRight(l, " \t\r\n")
		rest, begins := bytes.CutPrefix(l, []byte("---"))
		begins = begins && (len(rest) == 0 || bytes.ContainsRune([]byte(" \t\r\n"), rune(rest[0])))
		switch {
		case begins:
			docs = append(docs, doc)
			// What stands behind the marker belongs to the document.
			doc = append(bytes.Repeat([]byte("\n"), line), rest...)
		case bytes.Equal(marker, []byte("...")):
			doc = append(doc, '\n')
		default:
			doc = append(doc, l...)
		}
		line++
	}
	return append(docs, doc)
}

func splitJSON(data []byte) ([][]byte, error) {
	var docs [][]byte
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		var v json.RawMessage
		switch err := d.Decode(&v); {
		case errors.Is(err, io.EOF):
			return docs, nil
		case err != nil:
			return nil, err
		}
		docs = append(docs, v)
	}
}

// items takes a list apart; an object that is none is its only item.
func (s source) items() []source {
	var elements []json.RawMessage
	switch {
	case s.err != nil:
		return []source{s}
	case bytes.HasPrefix(s.json, []byte("[")):
		s.err = json.Unmarshal(s.json, &elements)
	case bytes.HasPrefix(s.json, []byte("{")):
		var head struct {
			Kind  any               `json:"kind"`
			Items []json.RawMessage `json:"items"`
		}
		s.err = json.Unmarshal(s.json, &head)
		if kind, _ := head.Kind.(string); !strings.HasSuffix(kind, "List") {
			s.err = nil // what else is wrong with it is found by who decodes it
			return []source{s}
		}
		elements = head.Items
	default:
		s.err = errors.New("want an object with kind, apiVersion, metadata and spec")
	}
	if s.err != nil {
		return []source{s}
	}
	all := make([]source, 0, len(elements))
	for i, e := range elements {
		all = append(all, source{file: s.file, doc: s.doc, item: i + 1, json: e})
	}
	return all
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
