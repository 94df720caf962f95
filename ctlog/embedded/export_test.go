package embedded

import "time"

// What tests set, and nobody else.

func (o *Options) SetLockWait(d time.Duration)               { o.lockWait = d }
func (o *Options) SetMaxQueue(entries int)                   { o.maxQueue = entries }
func (o *Options) SetFree(free func(string) (uint64, error)) { o.free = free }
