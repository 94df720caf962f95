package rotation_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/promises"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/ctlog/rotation"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// midyear is the present of most tests.
var midyear = time.Date(2040, 6, 1, 0, 0, 0, 0, time.UTC)

// rig is a log of 2039, its state file and the keys of both.
type rig struct {
	t          *testing.T
	dir, trail string
	config     ctlog.Config
	refuse     error // what the check of the whole configuration says
	keys       map[string]*ctlogtest.Signer
	made       []setting.Secret // with which passphrases
}

func newRig(t *testing.T, edit func(*ctlog.EmbeddedConfig)) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: dir, trail: filepath.Join(dir, "audit.jsonl"), config: ctlog.DefaultConfig(), keys: map[string]*ctlogtest.Signer{}}
	log := &r.config.Embedded
	log.Directory, log.MarkFile = setting.Path(filepath.Join(dir, "ctlog")), setting.Path(filepath.Join(dir, "ctlog.mark"))
	log.URL, log.Key, log.Start = "http://127.0.0.1:5555/ctlog/2039", setting.KeyRef("file:"+filepath.Join(dir, "ctlog.key.pem")), midyear.AddDate(-1, 0, 0)
	r.config.Mode, r.config.StateFile = ctlog.ModeEmbedded, setting.Path(filepath.Join(dir, "logs.json"))
	if edit != nil {
		edit(log)
	}
	signer, err := r.Open(t.Context(), log.Key, setting.Secret{})
	if err := errors.Join(err, embedded.Create(t.Context(), *log, embedded.Options{Signer: signer})); err != nil {
		t.Fatal(err)
	}
	if err := rotation.Export(r.config, string(r.config.StateFile)); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) Make(file string, passphrase setting.Secret) error {
	r.made = append(r.made, passphrase)
	return os.WriteFile(file, []byte("a key"), 0o600)
}

func (r *rig) Open(_ context.Context, key setting.KeyRef, _ setting.Secret) (ctlog.Signer, error) {
	if r.keys[string(key)] == nil {
		r.keys[string(key)] = ctlogtest.NewSigner(r.t)
	}
	return r.keys[string(key)], nil
}

func (r *rig) check(c ctlog.Config) error {
	var f setting.Faults
	c.Check("ctlog", &f)
	return errors.Join(f.Err(), r.refuse)
}

func (r *rig) open(t *testing.T) *rotation.Store {
	t.Helper()
	s, err := rotation.Open(r.config, r.check)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// rotate carries out a rotation at a moment.
func (r *rig) rotate(t *testing.T, ask rotation.Request, now time.Time) (rotation.Plan, error) {
	t.Helper()
	s, err := rotation.Open(r.config, r.check)
	if err != nil {
		return rotation.Plan{}, err
	}
	defer s.Close()
	p, err := s.Plan(ask, now)
	if err != nil {
		return p, err
	}
	return p, s.Create(t.Context(), p, r)
}

// logs are those of the configuration as a service reads it.
func (r *rig) logs(t *testing.T) ctlog.Config {
	t.Helper()
	c := r.config
	var err error
	if c.State, err = ctlog.ReadState(string(c.StateFile)); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestRotateNames: every log gets names, a key and a time of its own, year by year.
func TestRotateNames(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	now, year := midyear, midyear.Year()+1
	for n := range 3 {
		ask := rotation.Request{Yearly: true}
		if n == 2 { // a second one in a year
			ask = rotation.Request{At: time.Date(year+1, 7, 1, 0, 0, 0, 0, time.UTC)}
		}
		p, err := r.rotate(t, ask, now)
		if err != nil {
			t.Fatal(err)
		}
		label := []string{fmt.Sprint(year), fmt.Sprint(year + 1), fmt.Sprintf("%d-2", year+1)}[n]
		for got, want := range map[string]string{
			p.Next.URL: "http://127.0.0.1:5555/ctlog/" + label, string(p.Next.Directory): filepath.Join(r.dir, "ctlog-"+label),
			string(p.Next.MarkFile): filepath.Join(r.dir, "ctlog-"+label+".mark"), string(p.Next.Key): "file:" + filepath.Join(r.dir, "ctlog-"+label+".key.pem"),
		} {
			if got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		c := r.logs(t)
		if own := c.Own(); len(own) != n+2 || !own[n].End.Equal(p.Next.Start) || own[n].Key == own[n+1].Key {
			t.Errorf("%d logs, the one before ends %s", len(own), own[n].End)
		}
		if _, err := r.rotate(t, rotation.Request{Yearly: true}, now); err == nil || !strings.Contains(err.Error(), "the next log is there already") {
			t.Errorf("a second rotation at once: %v", err)
		}
		now = p.Next.Start.Add(time.Hour)
	}
}

// TestRotateKeepsSettings: the next log is as the last one is, what is switched off
// included.
func TestRotateKeepsSettings(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *ctlog.EmbeddedConfig) {
		c.MinFreeMB, c.VerifyInterval, c.CheckpointInterval = 0, 0, 3*time.Second
		c.Operator, c.Submission, c.Passphrase = "Example & Co.", true, setting.Secret{Env: "PASS"}
		c.Witnesses = ctlog.WitnessesConfig{Mode: ctlog.WitnessClosed, Timeout: time.Second, Required: 1, List: []ctlog.WitnessConfig{
			{URL: "https://witness.example.com", Key: "witness.example.com+ad1d4a78+BGQbx1W3KtKpZ4Fht0XjK6hCUkVrF9sKpxJpM6nBQ9Tz"},
		}}
	})
	p, err := r.rotate(t, rotation.Request{Yearly: true}, midyear)
	if err != nil {
		t.Fatal(err)
	}
	c := r.logs(t)
	want := r.config.Embedded
	want.Directory, want.MarkFile, want.URL, want.Key, want.Start = p.Next.Directory, p.Next.MarkFile, p.Next.URL, p.Next.Key, p.Next.Start
	if got := c.Own()[1]; fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("the next log is\n%+v, want\n%+v", got, want)
	}
	if len(r.made) != 1 || r.made[0] != want.Passphrase {
		t.Errorf("keys were made with %v", r.made)
	}
}

// TestRotateToGivenKey: a key that is there already is used as it is, without the last
// one's passphrase, and none is made.
func TestRotateToGivenKey(t *testing.T) {
	t.Parallel()
	const kms = "awskms:///arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	r := newRig(t, func(c *ctlog.EmbeddedConfig) { c.Passphrase = setting.Secret{Env: "PASS"} })
	if _, err := r.rotate(t, rotation.Request{Yearly: true, Key: kms}, midyear); err != nil {
		t.Fatal(err)
	}
	c := r.logs(t)
	next := c.Own()[1]
	if next.Key != kms || !next.Passphrase.IsZero() || len(r.made) > 0 {
		t.Errorf("the next log has the key %s and the passphrase %v; %d were made", next.Key, next.Passphrase, len(r.made))
	}
	owner, err := logdir.Dir(next.Directory).Owner()
	if want := r.keys[kms].SPKI(t); err != nil || string(owner.Key) != string(want) {
		t.Errorf("the next log was made with another key: %v", err)
	}
	// The one after it needs a key that is named as well.
	_, err = r.rotate(t, rotation.Request{Yearly: true}, next.Start.Add(time.Hour))
	if refused := (*rotation.Refusal)(nil); !errors.As(err, &refused) || refused.Kind != rotation.Misasked || !strings.Contains(refused.Fix, "--key") {
		t.Errorf("a key in a KMS is followed by %v", err)
	}
	// No log has another's key.
	if _, err := r.rotate(t, rotation.Request{Yearly: true, Key: kms}, next.Start.Add(time.Hour)); err == nil || !strings.Contains(err.Error(), "each log has its own") {
		t.Errorf("two logs with one key: %v", err)
	}
}

// TestRotateLeavesNothing: a rotation that fails at its end takes away what it made.
func TestRotateLeavesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	s := r.open(t)
	before, err := os.ReadDir(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Plan(rotation.Request{Yearly: true}, midyear)
	if err != nil {
		t.Fatal(err)
	}
	r.refuse = errors.New("somebody wrote meanwhile")
	if err := s.Create(t.Context(), p, r); !errors.Is(err, r.refuse) {
		t.Errorf("got %v", err)
	}
	r.refuse = nil
	if after, err := os.ReadDir(r.dir); err != nil || len(after) != len(before) {
		t.Errorf("%v is left, of %v; %v", after, before, err)
	}
	if err := os.WriteFile(string(p.Next.MarkFile), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), p, r); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file in the way: %v", err)
	}
	if kept, err := os.ReadFile(string(p.Next.MarkFile)); err != nil || string(kept) != "precious" {
		t.Errorf("a file in the way became %q, %v", kept, err)
	}
}

// TestRotateTwice: of two rotations at once one makes the log, and the other takes
// nothing of it away.
func TestRotateTwice(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	const key = "awskms:///alias/next" // nothing of it is made here
	if _, err := r.Open(t.Context(), key, setting.Secret{}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		errs := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := r.rotate(t, rotation.Request{Yearly: true, Key: key}, midyear)
				errs <- err
			}()
		}
		if err, other := <-errs, <-errs; (err == nil) == (other == nil) {
			t.Fatalf("%v and %v, want one error", err, other)
		}
		c := r.logs(t)
		next := c.Own()[1]
		if _, err := maintain.Verify(t.Context(), string(next.Directory), maintain.VerifyOptions{MarkFile: string(next.MarkFile)}); err != nil {
			t.Fatalf("the log that was made: %v", err)
		}
		for _, err := range []error{
			os.RemoveAll(string(next.Directory)), os.Remove(string(next.MarkFile)), os.Remove(string(c.StateFile)),
			rotation.Export(r.config, string(c.StateFile)),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestRotateAgainstConfiguration: an end that the configuration gives itself is kept.
func TestRotateAgainstConfiguration(t *testing.T) {
	t.Parallel()
	end := midyear.AddDate(0, 1, 0)
	r := newRig(t, nil)
	r.config.Embedded.End = end
	if _, err := r.rotate(t, rotation.Request{Yearly: true}, midyear); err == nil || !strings.Contains(err.Error(), "the configuration ends the log") {
		t.Errorf("another moment than the configuration's: %v", err)
	}
	if p, err := r.rotate(t, rotation.Request{}, midyear); err != nil || !p.Next.Start.Equal(end) {
		t.Errorf("the next log begins %v, %v; want %v", p.Next.Start, err, end)
	}
}

// TestFreezeWaitsForPromises: a log that owes an entry is not frozen.
func TestFreezeWaitsForPromises(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	began := time.Now()
	r.config.Embedded.Start = began.Add(-time.Hour)
	p, err := r.rotate(t, rotation.Request{Force: true, At: began.Add(time.Minute)}, began)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := logdir.Dir(p.Before.Directory).Owner()
	if err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf(`{"type":"dev.mayfly.certificate.issued","time":%q,"data":{"serial":"5e41a1","log_id":"%x","leaf_hash":"%x","log_index":0,"sct_timestamp":%[1]q}}`+"\n",
		began.Format(time.RFC3339Nano), sha256.Sum256(owner.Key), sha256.Sum256(nil))
	if err := os.WriteFile(r.trail, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	c := r.logs(t)
	if _, err := rotation.Ended(c, "", began); err == nil {
		t.Error("a log in use is chosen")
	}
	log, err := rotation.Ended(c, "", p.Next.Start)
	if err != nil || log.URL != p.Before.URL {
		t.Fatalf("%s, %v", log.URL, err)
	}
	// Whoever can write the monitor's state can't have it believed that all is well.
	state := inclusion.StateFile(r.trail)
	if err := os.WriteFile(state, fmt.Appendf(nil, `{"until":%q}`, began.Add(time.Minute).Format(time.RFC3339Nano)), 0o600); err != nil {
		t.Fatal(err)
	}
	var refused *rotation.Refusal
	if _, err := rotation.VerifyComplete(t.Context(), log, promises.Follow(r.trail, nil), nil); !errors.As(err, &refused) || refused.Kind != rotation.Unverified || !strings.Contains(err.Error(), "serial number 5e41a1") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(r.trail, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rotation.VerifyComplete(t.Context(), log, promises.Follow(r.trail, nil), nil); err != nil {
		t.Errorf("a log that owes nothing: %v", err)
	}
}

// TestFreezeMeanwhile: a log is frozen by what it is, not by the place that it had
// before it was checked, which takes hours; wherever it is defined.
func TestFreezeMeanwhile(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	now := midyear
	for range 3 {
		p, err := r.rotate(t, rotation.Request{Yearly: true}, now)
		if err != nil {
			t.Fatal(err)
		}
		now = p.Next.Start.Add(time.Hour)
	}
	if err := os.WriteFile(r.trail, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	prove := func(url string) rotation.Complete {
		log, err := rotation.Ended(r.logs(t), url, now)
		if err != nil {
			t.Fatal(err)
		}
		complete, err := rotation.VerifyComplete(t.Context(), log, promises.Follow(r.trail, nil), nil)
		if err != nil {
			t.Fatal(err)
		}
		return complete
	}
	freeze := func(c rotation.Complete) error {
		s, err := rotation.Open(r.config, r.check)
		if err != nil {
			return err
		}
		defer s.Close()
		keyFile, err := s.Freeze(c, now)
		if err == nil && keyFile != string(c.Log.Directory)+".pub.pem" {
			t.Errorf("the key is in %s", keyFile)
		}
		return err
	}
	c := r.logs(t)
	own := c.Own()
	if err := freeze(prove(own[0].URL)); err != nil {
		t.Fatal(err)
	}
	one, other, again := prove(own[1].URL), prove(own[2].URL), prove(own[2].URL)
	for _, complete := range []rotation.Complete{one, other} {
		if err := freeze(complete); err != nil {
			t.Fatal(err)
		}
	}
	if err := freeze(again); err == nil {
		t.Error("a log is frozen twice")
	}
	c = r.logs(t)
	if left := c.Own(); len(left) != 1 || left[0].URL != own[3].URL || len(c.FrozenLogs()) != 3 {
		t.Errorf("%d logs are left, the first is %s, and %d are frozen; want %s alone and 3", len(left), left[0].URL, len(c.FrozenLogs()), own[3].URL)
	}
	// The configuration may drop the frozen log that it defines, and the state stands.
	c.Embedded = ctlog.DefaultConfig().Embedded
	if err := r.check(c); err != nil {
		t.Errorf("without the frozen log's definition: %v", err)
	}
}

// TestRotateAsRoot: what root makes in a service's folder is the service's.
func TestRotateAsRoot(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	const service = 4242
	r := newRig(t, nil)
	chown := func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, service, service))
	}
	if err := filepath.WalkDir(r.dir, chown); err != nil {
		t.Fatal(err)
	}
	p, err := r.rotate(t, rotation.Request{Yearly: true}, midyear)
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimPrefix(string(p.Next.Key), "file:") // of the rig's own making
	err = filepath.WalkDir(r.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == key {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if is := info.Sys().(*syscall.Stat_t); is.Uid != service || is.Gid != service { //nolint:forcetypeassert // on Linux
			t.Errorf("%s belongs to %d:%d", path, is.Uid, is.Gid)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
