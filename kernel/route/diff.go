package route

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tortie/desired"
)

// Diff returns, as sorted lines, what the kernel lacks (+), has too much (-)
// or has otherwise (~), and writes nothing.
func (r *Routes) Diff(ctx context.Context, want *desired.State) (string, error) {
	have, duplicates, err := r.read(ctx, func(link string) bool {
		_, ok := want.Interfaces.Get(link)
		return ok
	})
	if err != nil {
		return "", err
	}
	var lines []string
	everyWanted(want, func(o object) {
		w, link, ok := wanted(want, o)
		if !ok {
			return
		}
		if h, there := have[o]; !there {
			lines = append(lines, fmt.Sprintf("+ %s to %s", o, link))
		} else if h != w || len(duplicates[o]) > 0 {
			lines = append(lines, fmt.Sprintf("~ %s to %s", o, link))
		}
	})
	for o := range have {
		if _, _, ok := wanted(want, o); !ok {
			lines = append(lines, "- "+o.String())
		}
	}
	slices.Sort(lines)
	return strings.Join(append(lines, ""), "\n"), nil
}
