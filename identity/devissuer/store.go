package devissuer

import (
	"sync"
	"time"
)

// store keeps a bounded number of values for a while, under keys that can't be
// guessed. When it is full, the oldest makes room.
type store[V any] struct {
	most int
	life time.Duration
	now  func() time.Time

	mu      sync.Mutex
	entries map[string]entry[V]
}

type entry[V any] struct {
	value   V
	expires time.Time
}

func newStore[V any](most int, life time.Duration, now func() time.Time) *store[V] {
	return &store[V]{most: most, life: life, now: now, entries: make(map[string]entry[V])}
}

// put keeps the value under the key.
func (s *store[V]) put(key string, value V) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	oldest := ""
	for k, e := range s.entries {
		// An expired value is kept for one more life, to be told from one
		// that never was.
		if now.After(e.expires.Add(s.life)) {
			delete(s.entries, k)
		} else if oldest == "" || e.expires.Before(s.entries[oldest].expires) {
			oldest = k
		}
	}
	if len(s.entries) >= s.most {
		delete(s.entries, oldest)
	}
	s.entries[key] = entry[V]{value: value, expires: now.Add(s.life)}
}

// change calls f with the value under the key, and keeps what f made of it, or
// drops it when f returns false. It reports whether the key is known and, if
// so, whether its value had expired, in which case f isn't called.
func (s *store[V]) change(key string, f func(*V) (keep bool)) (known, expired bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	if !ok {
		return false, false
	}
	if !s.now().Before(e.expires) {
		return true, true
	}
	if f(&e.value) {
		s.entries[key] = e
	} else {
		delete(s.entries, key)
	}
	return true, false
}

// find is the key of a live value that matches, or "".
func (s *store[V]) find(match func(V) bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for k, e := range s.entries {
		if now.Before(e.expires) && match(e.value) {
			return k
		}
	}
	return ""
}
