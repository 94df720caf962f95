package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/transparency-dev/tessera/api/layout"
)

// Backup copies what the published checkpoint of a log covers into another
// folder, and checks the copy as [Verify] does. The log may be in use meanwhile.
// What the folder holds from an earlier backup is not copied again.
//
// A backup has no state: no log opens on it, so it can be served or kept, but
// never forks the log. [Restore] makes a log of it again.
func Backup(ctx context.Context, dir, to string, o VerifyOptions) (Report, error) {
	s, d := store{dir: dir}, store{dir: to}
	raw, err := s.ReadCheckpoint(ctx) // first: everything that it covers is there already
	if err != nil {
		return Report{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	a, err := s.about()
	if err != nil {
		return Report{}, err
	}
	if d.exists(stateDir) {
		return Report{}, fmt.Errorf("%s is a log itself, not a backup", to)
	}
	if d.exists(aboutName) {
		if earlier, err := d.about(); err != nil || string(earlier.Key) != string(a.Key) {
			return Report{}, errors.Join(fmt.Errorf("%s holds another log's backup", to), err)
		}
	}
	if entries, err := os.ReadDir(to); err == nil && len(entries) > 0 && !d.exists(aboutName) { // which a backup has first of all
		return Report{}, fmt.Errorf("%s holds something else than a backup of this log: name a new folder", to)
	}
	size, err := checkpointSize(raw, a)
	if err != nil {
		return Report{}, err
	}
	if err := s.copyTo(ctx, d, size, o.Progress); err != nil {
		return Report{}, fmt.Errorf("copying the log: %w", err)
	}
	if err := d.put(raw, checkpointName); err != nil { // last: it says that all else is there
		return Report{}, err
	}
	o.Backup, o.Progress = true, nil
	return Verify(ctx, to, o)
}

// checkpointSize is the size that a checkpoint's second line says. Verify checks
// its signature in the end.
func checkpointSize(raw []byte, a about) (uint64, error) {
	body, _, _ := cutText(raw)
	t, err := parseCheckpointText(body, a.Description)
	return t.size, err
}

// cutText separates the text of a note from its signatures (c2sp.org/signed-note).
func cutText(raw []byte) (text, signatures []byte, found bool) {
	for i := 0; i+1 < len(raw); i++ {
		if raw[i] == '\n' && raw[i+1] == '\n' {
			return raw[:i+1], raw[i+2:], true
		}
	}
	return raw, nil, false
}

// copyTo copies description, issuers and tiles of the first size entries.
func (s store) copyTo(ctx context.Context, d store, size uint64, progress func(done, total uint64)) error {
	description, err := os.ReadFile(s.path(aboutName))
	if err != nil {
		return err
	}
	if err := d.put(description, aboutName); err != nil {
		return err
	}
	if err := s.copyIssuers(d); err != nil {
		return err
	}
	for level := dataLevel; level <= maxLevel; level++ {
		entries := size >> (layout.TileHeight * max(level, 0))
		for index := uint64(0); index*layout.TileWidth < entries; index++ {
			t := tilePath{level: level, index: index}
			if left := entries - index*layout.TileWidth; left < layout.TileWidth {
				t.width = uint8(left)
			}
			if err := s.copyTile(ctx, d, t, size); err != nil {
				return err
			}
			if level == dataLevel && progress != nil {
				progress(min(size, (index+1)*layout.TileWidth), size)
			}
		}
	}
	return nil
}

// copyTile copies a tile, unless it is full and there already.
func (s store) copyTile(ctx context.Context, d store, t tilePath, size uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name := dataTilePath(t.index, t.width)
	if t.level != dataLevel {
		name = layout.TilePath(uint64(t.level), t.index, t.width)
	}
	if t.width == 0 && d.exists(name) { // the same for ever; Verify looks into it
		return nil
	}
	data, err := s.tile(ctx, t, size)
	if err != nil {
		return err
	}
	return d.put(data, name)
}

func (s store) copyIssuers(d store) error {
	entries, err := os.ReadDir(s.path(issuerDir))
	if errors.Is(err, os.ErrNotExist) { // an empty log
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if unfinished(e.Name()) || d.exists(issuerDir, e.Name()) {
			continue
		}
		der, err := os.ReadFile(s.path(issuerDir, e.Name()))
		if err == nil {
			err = d.put(der, issuerDir, e.Name())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// put writes a file and its folders, durably.
func (s store) put(data []byte, names ...string) error {
	path := s.path(names...)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // the log is public
		return err
	}
	return writeDurably(path, data)
}

// ErrBehind means that a log released SCTs that a backup of it doesn't cover: a
// log that went on from there would be a fork.
var ErrBehind = errors.New("the backup is older than the log was: it can be served, but nothing may be added to it")

// Restore makes a log of a backup in an empty or missing directory. It verifies
// the backup first, whole and against the log's high-water mark. It refuses one
// that is behind the mark (ErrBehind), or when the mark is lost: then the key may have
// signed more than the backup knows, and the log has to be followed by another one.
func Restore(ctx context.Context, backup, dir, markFile string, o VerifyOptions) (_ Report, err error) {
	from := store{dir: backup}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return Report{}, fmt.Errorf("%s isn't empty: a log is never overwritten", dir)
	}
	a, err := from.about()
	if err != nil {
		return Report{}, err
	}
	raw, err := from.ReadCheckpoint(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	size, err := checkpointSize(raw, a)
	if err != nil {
		return Report{}, err
	}
	mark, high, err := takeMark(ctx, markFile, [32]byte(a.LogID), time.Second)
	switch {
	case errors.Is(err, ErrLocked):
		return Report{}, fmt.Errorf("the log whose mark is %s is running: end it before a copy takes its place: %w", markFile, err)
	case err != nil:
		return Report{}, fmt.Errorf("without the log's mark nobody knows what else the log promised: %w", err)
	}
	defer func() { err = errors.Join(err, mark.close()) }()
	if high.size > size {
		return Report{}, fmt.Errorf("%w: it has %d entries, the log had %d", ErrBehind, size, high.size)
	}
	o.Backup, o.MarkFile = true, markFile
	report, err := Verify(ctx, backup, o)
	if err != nil {
		return report, err
	}
	return report, install(ctx, from, store{dir: dir}, raw, report)
}

// install copies a verified backup and gives it the state that a log opens on.
func install(ctx context.Context, from, to store, checkpoint []byte, report Report) error {
	if err := os.MkdirAll(to.dir, 0o755); err != nil { //nolint:gosec // the log is public
		return fmt.Errorf("making the directory: %w", err)
	}
	lock, err := lockDir(ctx, to.dir, time.Second)
	if err != nil {
		return err
	}
	if err := from.copyTo(ctx, to, report.Size, nil); err != nil {
		return errors.Join(fmt.Errorf("copying the backup: %w", err), lock.release())
	}
	state, err := json.Marshal(struct {
		Size uint64 `json:"size"`
		Root []byte `json:"root"`
	}{report.Size, report.Root})
	if err == nil {
		err = to.put(checkpoint, checkpointName)
	}
	if err == nil {
		err = to.put(state, stateDir, treeStateName) // last: without it nothing opens the log
	}
	return errors.Join(err, lock.release())
}
