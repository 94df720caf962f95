package embedded

import (
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// What tests set, and nobody else.

func (o *Options) SetLockWait(d time.Duration)               { o.lockWait = d }
func (o *Options) SetMaxQueue(entries int)                   { o.maxQueue = entries }
func (o *Options) SetFree(free func(string) (uint64, error)) { o.free = free }

// BeforeMark has a function called before the mark goes up, whose error keeps it where
// it is. To be called before the first entry.
func (l *Log) BeforeMark(before func(to checkpoint.Tree) error) { l.mark = heldMark{l.mark, before} }

type heldMark struct {
	highWater
	before func(checkpoint.Tree) error
}

func (m heldMark) Advance(to logdir.High) error {
	if err := m.before(to.Tree); err != nil {
		return err
	}
	return m.highWater.Advance(to)
}
