package service

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// relay passes connections on to a service, and counts those that are open.
type relay struct {
	url         string
	taken, open atomic.Int64
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r := &relay{url: "http://" + l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.taken.Add(1)
			r.open.Add(1)
			go func() {
				defer r.open.Add(-1)
				defer c.Close()
				far, err := net.Dial("tcp", strings.TrimPrefix(to, "http://"))
				if err != nil {
					return
				}
				var both sync.WaitGroup
				both.Go(func() { _, _ = io.Copy(c, far); _ = c.Close() })
				both.Go(func() { _, _ = io.Copy(far, c); _ = far.Close() })
				both.Wait()
			}()
		}
	}()
	return r
}

// TestRefusedReloadClosesKey: the key of a new active authority is closed when
// something else of the configuration is refused.
func TestRefusedReloadClosesKey(t *testing.T) {
	r := newRotating(t)
	path := strings.TrimPrefix(string(r.list[1].Key), "file:")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	s := kmstest.NewVault(t, key.(crypto.Signer))
	way := newRelay(t, s.URL)
	t.Setenv("VAULT_TOKEN", kmstest.VaultToken) // so this test runs alone
	next := r.list[1]
	next.Key, next.Access = setting.KeyRef(s.Ref), s.Options.Access
	next.Endpoint = way.url
	now := time.Now().UTC().Truncate(time.Second)
	next.Record = lifecycle.Record{State: lifecycle.Active, Published: now, Activated: now, Forced: "a test"}
	old := r.list[0]
	old.Record = lifecycle.Record{State: lifecycle.Retired, Retired: now}
	r.offer(func(c *config.Config) {
		c.CA.Authorities = []ca.NamedAuthority{old, next}
		c.Server.HTTPAddress = "127.0.0.1:1" // needs a restart
	})
	r.hup()
	r.expect(t, "a change that needs a restart", 0, 1)
	if way.taken.Load() == 0 {
		t.Fatal("the key wasn't opened")
	}
	poll(t, "the key is closed", func() bool { return way.open.Load() == 0 })
}
