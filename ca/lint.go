package ca

import (
	"time"
)

func lint(tbs []byte, a *Authority, lifetime time.Duration) error { return nil }
