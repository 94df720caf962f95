package index_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/internal/store/storetest"
)

// followerEnv turns this test binary into a process that follows a log until it is killed.
const followerEnv = "MAYFLY_TEST_FOLLOWER"

// kills is how often it is killed.
const kills = 50

func TestMain(m *testing.M) {
	if text := os.Getenv(followerEnv); text != "" {
		if err := followUntilKilled(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

type job struct {
	Store store.Config
	Log   ctlog.Description
	URL   string
	Dir   string
}

// telling tells what is begun and done, a line each.
type telling struct{ *index.Index }

func (k telling) Keep(ctx context.Context, log ctlog.Description, from uint64, entries []follow.Entry, after follow.Position) error {
	fmt.Println("begins")
	err := k.Index.Keep(ctx, log, from, entries, after)
	fmt.Println("ended", err)
	return err
}

func followUntilKilled(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	ctx := context.Background() // it is killed
	db, err := store.Open(ctx, j.Store)
	if err != nil {
		return err
	}
	i := index.New()
	if err := i.Open(ctx, db); err != nil {
		return err
	}
	f, err := follow.New([]remote.Log{{Description: j.Log, URL: j.URL}}, follow.Options{Keeper: telling{i}, Evidence: j.Dir, Interval: time.Millisecond})
	if err != nil {
		return err
	}
	return f.Run(ctx)
}

// testKilled: a follower that is killed while a log grows misses nothing and doubles
// nothing.
func testKilled(t *testing.T, c store.Config) {
	ca, signer, dir := ctlogtest.NewCA(t), ctlogtest.NewSigner(t), t.TempDir()
	log, err := embedded.Open(t.Context(), embedded.Config{
		Directory: setting.Path(filepath.Join(dir, "log")), MarkFile: setting.Path(filepath.Join(dir, "mark")),
		URL: "https://log.example/2027", CheckpointInterval: 100 * time.Millisecond,
	}, embedded.Options{Signer: signer, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close(context.WithoutCancel(t.Context())) })
	server := httptest.NewServer(log.LocalReads())
	t.Cleanup(server.Close)
	ended, end := context.WithCancel(t.Context())
	var growing sync.WaitGroup
	growing.Go(func() {
		for ended.Err() == nil {
			if _, err := log.Submit(t.Context(), ca.Chain(t)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	text, err := json.Marshal(job{c, log.Description(), server.URL, dir})
	if err != nil {
		t.Fatal(err)
	}
	for range kills {
		child := exec.Command(os.Args[0])
		child.Env, child.Stderr = append(os.Environ(), followerEnv+"="+string(text)), os.Stderr
		out, err := child.StdoutPipe()
		if err == nil {
			err = child.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 1 + rand.N(4) { // in the middle of a transaction, or between two
			lines.Scan()
		}
		_ = child.Process.Kill()
		_ = child.Wait()
	}
	end()
	growing.Wait()
	all := ctlogtest.NewReader(t, log.Description(), server.URL, server.Client())
	i := index.New()
	if err := i.Open(t.Context(), storetest.Open(t, c)); err != nil {
		t.Fatal(err)
	}
	f, err := follow.New([]remote.Log{{Description: log.Description(), URL: server.URL}}, follow.Options{Keeper: i, Evidence: dir})
	if err != nil {
		t.Fatal(err)
	}
	before, err := i.Position(t.Context(), log.Description())
	if err != nil || before.Size == 0 {
		t.Fatalf("nothing was followed while it was killed: %+v, %v", before, err)
	}
	head := all.Head(t)
	for at := before; at.Size < head.Size; {
		if err := f.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if at, err = i.Position(t.Context(), log.Description()); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint64]string{}
	for q := (index.Query{}); ; {
		page, err := i.Search(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range page.Certificates {
			if seen[c.Index] != "" {
				t.Errorf("entry %d is there twice", c.Index)
			}
			seen[c.Index] = c.Fields["serial"]
		}
		if q.Cursor = page.Next; q.Cursor == "" {
			break
		}
	}
	for n := range head.Size {
		if seen[n] == "" {
			t.Errorf("entry %d is missing", n)
		}
	}
	t.Logf("%d entries, %d of them followed while it was killed", len(seen), before.Size)
	if evidence, _ := filepath.Glob(filepath.Join(dir, "*.json")); len(evidence) > 0 {
		t.Errorf("evidence against an honest log: %s", strings.Join(evidence, ", "))
	}
}
