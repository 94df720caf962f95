package page_test

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/server"
	"github.com/mayfly-ca/mayfly/server/page"
)

// TestShow serves the page over a made-up day for people to look at, for ten minutes:
//
//	PAGE_SHOW=127.0.0.1:8080 go test -run TestShow ./server/page
func TestShow(t *testing.T) {
	at := os.Getenv("PAGE_SHOW")
	if at == "" {
		t.Skip("PAGE_SHOW names no address")
	}
	r := newRig(t, page.Config{Access: page.Loopback})
	_, chain := authority(t)
	r.history = trustroot.History{
		Authorities: []trustroot.Authority{{Chain: chain, URL: "https://ca.example.com", Start: noon.AddDate(-2, 0, 0), End: noon.AddDate(0, -1, 0)}, {Chain: chain, URL: "https://ca.example.com", Start: noon.AddDate(0, -2, 0), End: noon.AddDate(3, 0, 0)}},
		CTLogs:      []ctlog.Description{{ID: [32]byte(bytesOf(0xab)), URL: "https://ca.example.com/ctlog/2026", Start: noon.AddDate(-1, 0, 0), End: noon.AddDate(0, 1, 0)}, {ID: [32]byte(bytesOf(0xcd)), URL: "https://ca.example.com/ctlog/2027", Start: noon.AddDate(0, 1, 0)}},
	}
	r.health = page.Health{
		Dependencies: []server.Standing{{Name: "authority", Works: true, Detail: []string{"y2026: active, valid to 2029-11-29T12:00:00Z"}}, {Name: "log", Works: true}},
		Logs:         []follow.Status{{URL: "https://ca.example.com/ctlog/2026", Followed: 104_217, Size: 104_217}},
		Expiries:     []page.Expiry{{What: "log https://ca.example.com/ctlog/2026", At: noon.AddDate(0, 1, 0)}, {What: "authority y2026", At: noon.AddDate(3, 0, 0)}},
	}
	people := []string{"alice@example.com", "bob@example.com", "chiara@lab.example.com", "عليّ@مثال.إختبار", strings.Repeat("long-name-", 19) + "@example.com"}
	for i := range 200 {
		c := issued(fmt.Sprintf("%x", 0x1a2b3c+i), people[i%7%len(people)], "email")
		c.NotBefore = noon.Add(time.Hour - time.Duration(i*i)*time.Second*2)
		c.NotAfter = c.NotBefore.Add(10*time.Minute - time.Second)
		if i%7 > 1 {
			repository := "https://github.com/acme/" + []string{"tool", "web-shop", "نشر-الإصدار", "firmware"}[i%4]
			for name, value := range map[string]string{
				"san": repository + "/.github/workflows/release.yml@refs/tags/v1", "san_type": "uri", "issuer": "https://token.actions.githubusercontent.com", "source_repository_uri": repository, "identity": repository,
				"workflow": repository + "/.github/workflows/release.yml", "source_repository_ref": "refs/tags/v1." + fmt.Sprint(i), "build_trigger": "push", "runner_environment": "github-hosted",
			} {
				c.Fields[name] = value
			}
		}
		if i%11 == 3 && i%7 > 1 {
			for name, value := range c.Fields {
				c.Fields[name] = strings.NewReplacer("token.actions.githubusercontent.com", "gitlab.com", "github.com", "gitlab.com", ".github/workflows/release", "/.gitlab-ci").Replace(value)
			}
		}
		c.Index = uint64(i)
		if i == 4 {
			c.RevokedAt, c.RevokedReason = noon, "key_compromise"
		}
		r.found = append(r.found, c)
	}
	listed := &firstPage{rig: r, key: catest.Key(t)}
	r.options.Index, r.options.Entries = listed, listed
	r.page = page.New(r.options)
	s := &http.Server{Addr: at, ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		from, _ := net.ResolveTCPAddr("tcp", q.RemoteAddr)
		r.page.ServeHTTP(w, q.WithContext(peer.NewContext(q.Context(), &peer.Peer{Addr: from})))
	})}
	time.AfterFunc(10*time.Minute, func() { _ = s.Close() })
	t.Log(s.ListenAndServe())
}

// firstPage gives fifty at once.
type firstPage struct {
	*rig
	key *ecdsa.PrivateKey
}

func (f *firstPage) Search(ctx context.Context, q index.Query) (index.Page, error) {
	p, err := f.rig.Search(ctx, q)
	if len(p.Certificates) > q.Limit {
		p.Certificates, p.Next = p.Certificates[:q.Limit], "further"
	}
	return p, err
}

// Show gives each its certificate.
func (f *firstPage) Show(_ context.Context, _ [32]byte, n uint64) (follow.Shown, error) {
	c := f.found[n].Fields
	extensions, err := extension.Set{
		Issuer: c["issuer"], TokenSubject: "repo:acme/tool:ref:refs/tags/v1", SourceRepositoryURI: c["source_repository_uri"], SourceRepositoryRef: c["source_repository_ref"],
		BuildConfigURI: c["san"], BuildTrigger: c["build_trigger"], RunnerEnvironment: c["runner_environment"],
	}.Extensions()
	if err != nil {
		return follow.Shown{}, err
	}
	template := catest.Authority("Example", "leaf", noon, noon.Add(10*time.Minute))
	template.ExtraExtensions = extensions
	der := catest.Sign(f.t, template, template, f.key.Public(), f.key).Raw
	return follow.Shown{Entry: follow.Entry{Index: n, Timestamp: noon, Certificate: der}, Submitted: der, Size: 104_217, Signed: noon}, nil
}
