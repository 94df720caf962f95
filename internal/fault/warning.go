package fault

import "strings"

// Warning is what a check answers with that found a reason to act soon, and none to
// stop: what was checked works. Anybody may read it, so it names no file and no secret.
type Warning string

// Error is the warning.
func (w Warning) Error() string { return string(w) }

// Warn is a warning with the reasons, nil where there is none.
func Warn(reasons ...string) error {
	if len(reasons) == 0 {
		return nil
	}
	return Warning(strings.Join(reasons, "; "))
}

// Warns reports whether err is a [Warning], and nothing worse beside one: an error that
// wraps a warning is a failure.
func Warns(err error) bool {
	_, warns := err.(Warning) //nolint:errorlint // as it says
	return warns
}
