package devissuer

import (
	"iter"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// store keeps a bounded number of values for a while, under keys that can't be
// guessed. When it is full, the oldest makes room. Issuer.mu guards it.
type store[V any] struct {
	life    time.Duration
	now     func() time.Time
	entries *simplelru.LRU[string, *entry[V]] // Peek leaves them in the order in which they came
}

type entry[V any] struct {
	value   V
	expires time.Time
}

func newStore[V any](most int, life time.Duration, now func() time.Time) *store[V] {
	entries, _ := simplelru.NewLRU[string, *entry[V]](most, nil) // it fails for a size below 1
	return &store[V]{life: life, now: now, entries: entries}
}

func (s *store[V]) put(key string, value V) {
	s.entries.Add(key, &entry[V]{value, s.now().Add(s.life)})
}

// get is the value under the key: nil where there is none, or where it has expired,
// which known tells from the other.
func (s *store[V]) get(key string) (v *V, known bool) {
	e, known := s.entries.Peek(key)
	if !known || !s.now().Before(e.expires) {
		return nil, known
	}
	return &e.value, true
}

func (s *store[V]) remove(key string) { s.entries.Remove(key) }

// live are the values that haven't expired.
func (s *store[V]) live() iter.Seq[*V] {
	return func(yield func(*V) bool) {
		for _, key := range s.entries.Keys() {
			if v, _ := s.get(key); v != nil && !yield(v) {
				return
			}
		}
	}
}
