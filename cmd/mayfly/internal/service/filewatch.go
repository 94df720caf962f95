package main

import (
	"maps"
	"os"
	"slices"
)

// sighting is how a file looked, links followed: enough to tell one version of
// it from the next, whether it was written in place, renamed over, or reached by
// a link that now leads elsewhere.
type sighting struct {
	info os.FileInfo // nil where there is no such file, or it can't be reached
}

func (s sighting) same(other sighting) bool {
	if s.info == nil || other.info == nil {
		return s.info == nil && other.info == nil
	}
	return os.SameFile(s.info, other.info) && s.info.ModTime().Equal(other.info.ModTime()) &&
		s.info.Size() == other.info.Size() && s.info.Mode() == other.info.Mode()
}

// view is how files looked at one moment, by name.
type view map[string]sighting

func look(files []string) view {
	v := make(view, len(files))
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			info = nil
		}
		v[f] = sighting{info}
	}
	return v
}

// same reports whether the files of v look the same in other. Those that only
// one of them knows make a difference too.
func (v view) same(other view) bool {
	if len(v) != len(other) {
		return false
	}
	for f, s := range v {
		o, known := other[f]
		if !known || !s.same(o) {
			return false
		}
	}
	return true
}

// watcher notices that files have changed, by looking at them now and then.
type watcher struct {
	settled view // when they were last taken up
	latest  view // at the last look
}

// watch begins, or begins anew, with what the files look like now.
func (w *watcher) watch(files []string) {
	w.settled = look(files)
	w.latest = maps.Clone(w.settled)
}

// also watches further files, and leaves those that are watched already.
func (w *watcher) also(files []string) {
	for f, s := range look(files) {
		if _, known := w.settled[f]; !known {
			w.settled[f], w.latest[f] = s, s
		}
	}
}

// changed reports, once, that files differ from when they were taken up. It
// waits until two looks in a row see the same: whoever writes them may be in the
// middle of one, or between two that belong together.
func (w *watcher) changed() bool {
	now := look(slices.Collect(maps.Keys(w.settled)))
	quiet := now.same(w.latest)
	w.latest = now
	if !quiet || now.same(w.settled) {
		return false
	}
	w.settled = maps.Clone(now)
	return true
}
