package service

import (
	"maps"
	"os"
	"slices"
)

// fileVersion is how a file looks, links followed: enough to tell one version of
// it from the next, whether it was written in place, renamed over, or reached by
// a link that now leads elsewhere.
type fileVersion struct {
	info os.FileInfo // nil where there is no such file, or it can't be reached
}

func (v fileVersion) same(other fileVersion) bool {
	if v.info == nil || other.info == nil {
		return v.info == nil && other.info == nil
	}
	return os.SameFile(v.info, other.info) && v.info.ModTime().Equal(other.info.ModTime()) &&
		v.info.Size() == other.info.Size() && v.info.Mode() == other.info.Mode()
}

// snapshot is how files look at one moment, by name.
type snapshot map[string]fileVersion

func stat(files []string) snapshot {
	s := make(snapshot, len(files))
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			info = nil
		}
		s[f] = fileVersion{info}
	}
	return s
}

// same reports whether the files look the same in both. One that only one of them
// knows makes a difference too.
func (s snapshot) same(other snapshot) bool { return maps.EqualFunc(s, other, fileVersion.same) }

// watcher notices that files have changed, by looking at them now and then.
type watcher struct {
	settled snapshot // when they were last taken up
	latest  snapshot // at the last look
}

// watch begins, or begins anew, with what the files look like now.
func (w *watcher) watch(files []string) {
	w.settled = stat(files)
	w.latest = maps.Clone(w.settled)
}

// also watches further files, and leaves those that are watched already.
func (w *watcher) also(files []string) {
	for f, v := range stat(files) {
		if _, known := w.settled[f]; !known {
			w.settled[f], w.latest[f] = v, v
		}
	}
}

// changed reports, once, that files differ from when they were taken up. It
// waits until two looks in a row see the same: whoever writes them may be in the
// middle of one, or between two that belong together.
func (w *watcher) changed() bool {
	now := stat(slices.Collect(maps.Keys(w.settled)))
	quiet := now.same(w.latest)
	w.latest = now
	if !quiet || now.same(w.settled) {
		return false
	}
	w.settled = maps.Clone(now)
	return true
}
