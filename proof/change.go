package proof

import (
	"encoding/json"
	"fmt"
	"strings"

	"tortie/api"
)

// Change is an object put into the store, or one deleted.
type Change struct {
	Put    json.RawMessage `json:"put,omitempty"`
	Delete string          `json:"delete,omitempty"` // <kind>/<namespace>/<name>
}

// key is the key of the object.
func (c Change) key() (api.Key, error) {
	if c.Put == nil {
		parts := strings.Split(c.Delete, "/")
		if len(parts) == 3 {
			return api.Key{Kind: api.Kind(parts[0]), Namespace: parts[1], Name: parts[2]}, nil
		}
		return api.Key{}, fmt.Errorf("delete %q: want <kind>/<namespace>/<name>", c.Delete)
	}
	var doc struct {
		Kind     api.Kind
		Metadata struct{ Name, Namespace string }
	}
	if err := json.Unmarshal(c.Put, &doc); err != nil {
		return api.Key{}, fmt.Errorf("put %s: %w", c.Put, err)
	}
	return api.Key{Kind: doc.Kind, Namespace: doc.Metadata.Namespace, Name: doc.Metadata.Name}, nil
}

// deletion is how a Change names what it deletes.
func deletion(key api.Key) string { return string(key.Kind) + "/" + key.Namespace + "/" + key.Name }
