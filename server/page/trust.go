package page

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog"
)

// window is something that clients trust for a time, as a bar from 0 to 100.
type window struct {
	Name, URL, Fingerprint string
	Start, End             time.Time // a zero End is open
	From, Wide             float64
	State                  string // past, now, next
}

// group are windows of one kind.
type group struct {
	Title, About string
	Windows      []window
}

// trust is whom clients are told to trust, when, and how.
func (p *Page) trust(*http.Request, visitor) (any, error) {
	h, root, err := p.o.CA.Trust()
	if err != nil {
		return nil, err
	}
	content := struct {
		Groups   []group
		Lines    []named
		RootHash string
		URL      string
		Now      float64
		From, To time.Time
	}{URL: strings.TrimSuffix(p.o.PublicURL, "/")}
	content.Groups = []group{
		{"Certificate authorities", "They issue certificates. The fingerprint is the SHA-256 of the issuing certificate.", authorities(h.Authorities)},
		{"Transparency logs", "They show every certificate to everybody. The fingerprint is the log’s id, the SHA-256 of its key.", logs(h.CTLogs)},
		{"Timestamp authorities", "They say when something was signed, so that it verifies after the certificate’s minutes are over.", authorities(h.TimestampAuthorities)},
		{"Signature logs", "Rekor logs, which record signatures.", rekors(h.TransparencyLogs)},
	}
	now := p.o.Now()
	content.From, content.To = now, now.Add(24*time.Hour)
	each := func(do func(*window)) {
		for _, g := range content.Groups {
			for i := range g.Windows {
				do(&g.Windows[i])
			}
		}
	}
	each(func(w *window) {
		if !w.Start.IsZero() && w.Start.Before(content.From) {
			content.From = w.Start
		}
		if w.End.After(content.To) {
			content.To = w.End
		}
	})
	at := func(t time.Time) float64 {
		return float64(t.Sub(content.From)) / float64(content.To.Sub(content.From)) * 100
	}
	content.Now = at(now)
	each(func(w *window) {
		end := 100.0
		if w.State = "now"; !w.Start.IsZero() {
			w.From = at(w.Start)
		}
		if !w.End.IsZero() {
			end = at(w.End)
		}
		w.Wide = max(0.6, end-w.From)
		switch {
		case w.Start.After(now):
			w.State = "next"
		case !w.End.IsZero() && now.After(w.End):
			w.State = "past"
		}
	})
	if root != nil {
		sum := sha256.Sum256(root)
		content.RootHash = hex.EncodeToString(sum[:])
		url := quote(content.URL + "/tuf")
		content.Lines = []named{
			{Name: "the first root, and whether it is this one", Value: "curl -sSf -o 1.root.json " + quote(content.URL+"/tuf/1.root.json") + " && echo '" + content.RootHash + "  1.root.json' | sha256sum -c"},
			{Name: "cosign", Value: "cosign initialize --mirror " + url + " --root 1.root.json"},
			{Name: "mayfly", Value: "mayfly verify --tuf-url " + url + " --tuf-root 1.root.json --bundle FILE.sigstore.json --certificate-identity NAME --certificate-oidc-issuer ISSUER FILE"},
			{Name: "gitsign", Value: "gitsign initialize --mirror " + url + " --root 1.root.json"},
		}
	}
	return content, nil
}

func authorities(all []trustroot.Authority) (windows []window) {
	for _, a := range all {
		windows = append(windows, window{Name: chain.Subject(a.Chain[0]), URL: a.URL, Fingerprint: chain.Fingerprint(a.Chain[0].Raw), Start: a.Start, End: a.End})
	}
	return windows
}

func logs(all []ctlog.Description) (windows []window) {
	for _, l := range all {
		windows = append(windows, window{Name: l.URL, Fingerprint: hex.EncodeToString(l.ID[:]), Start: l.Start, End: l.End})
	}
	return windows
}

func rekors(all []trustroot.TransparencyLog) (windows []window) {
	for _, l := range all {
		windows = append(windows, logs([]ctlog.Description{l.Description})...)
	}
	return windows
}
