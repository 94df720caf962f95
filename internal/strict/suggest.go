package strict

import (
	"maps"
	"reflect"
	"slices"
	"strings"
)

// suggest names the known field nearest to an unknown one, or all fields when
// none is near and they are few.
func suggest(name string, known map[string]reflect.Value) string {
	switch near := Nearest(name, slices.Sorted(maps.Keys(known))); {
	case near != "":
		return "; did you mean " + near + "?"
	case len(known) <= 12:
		return "; known are " + listing(known)
	default:
		return ""
	}
}

// Nearest is the known name that a slip or two make into name, or "".
func Nearest(name string, known []string) string {
	near, least := "", 3 // farther than two slips is another word
	for _, candidate := range known {
		d := distance(plain(name), plain(candidate))
		if strings.HasPrefix(candidate, name) && len(name) > 2 {
			d = min(d, 2)
		}
		if d < least {
			near, least = candidate, d
		}
	}
	return near
}

// plain drops what people write in different ways: maxSize, max-size, max_size.
func plain(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(name))
}

func listing(known map[string]reflect.Value) string {
	return strings.Join(slices.Sorted(maps.Keys(known)), ", ")
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b. Long names are far from everything.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var rows [3][65]int // the one before, the last, this one
	for j := range len(b) + 1 {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		rows[2][0] = i
		for j := 1; j <= len(b); j++ {
			replace := rows[1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			rows[2][j] = min(replace, rows[1][j]+1, rows[2][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[2][j] = min(rows[2][j], rows[0][j-2]+1)
			}
		}
		rows[0], rows[1] = rows[1], rows[2]
	}
	return rows[1][len(b)]
}
