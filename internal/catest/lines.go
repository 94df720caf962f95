package catest

import (
	"bytes"
	"sync"
)

// Lines collects a log that is read while it is written.
type Lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to it.
func (l *Lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *Lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
