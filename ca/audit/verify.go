package audit

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Report is what [Verify] saw of one file of a trail and its parts.
type Report struct {
	File      string    `json:"file"`
	Records   int       `json:"records"`
	Unchained int       `json:"unchained"` // of before records had a hash of the one before them
	Heads     int       `json:"heads"`     // whose signatures were verified
	LastHead  time.Time `json:"last_head,omitzero"`
	Unsigned  int       `json:"unsigned"` // records after the last head: cut off, nobody would see it
	// Later is true where the first record there is wasn't the first there was: rotation,
	// or somebody, deleted what was before it.
	Later bool `json:"begins_later"`
}

// Head is a signed head as it went out to a sink.
type Head struct {
	Prev string    `json:"prev"`
	Type string    `json:"type"`
	Time time.Time `json:"time"`
	Data struct {
		File      string `json:"file"`
		Signature string `json:"signature"`
	} `json:"data"`
}

// Heads finds the records of heads in what a collector wrote, one a line, whatever it put
// before them.
func Heads(text []byte) (all []Head) {
	for line := range bytes.Lines(text) {
		if at := bytes.Index(line, []byte(begin)); at >= 0 {
			if h, ok := parseHead(line[at:]); ok {
				all = append(all, h)
			}
		}
	}
	return all
}

func parseHead(line []byte) (h Head, ok bool) {
	if !bytes.Contains(line, []byte(head.name())) {
		return h, false
	}
	err := json.NewDecoder(bytes.NewReader(line)).Decode(&h)
	return h, err == nil && h.Type == head.name()
}

// Verify reads all parts of one file of a trail, and tells every place where a line was
// altered, deleted, swapped, added or cut. key verifies the heads; nil looks at none.
// Those in kept went out earlier, and have to be there.
func Verify(file TrailFile, key *ecdsa.PublicKey, kept []Head, tell func(error)) (Report, error) {
	v := verification{Report: Report{File: file.Name}, key: key, kept: map[string]Head{}}
	for _, h := range kept {
		if h.Data.File == file.Name {
			v.kept[h.Data.Signature] = h
		}
	}
	follower := Follow(file.Path, time.Time{}, "")
	defer follower.Close()
	for line, err := range follower.Lines() {
		if err == nil {
			err = v.line(line.Text)
		} else if about := (*LineError)(nil); !errors.As(err, &about) && !errors.As(err, new(*PartError)) {
			return v.Report, err
		} else {
			v.last = ""
			tell(err)
			continue
		}
		if err != nil {
			tell(&LineError{Part: line.Part, Line: line.Number, Err: err})
		}
	}
	for _, h := range v.kept {
		if !h.Time.Before(v.began) {
			tell(fmt.Errorf("%s: the head that went out at %s isn't there: the trail was cut off before it, or written anew", file.Path, h.Time.Format(time.RFC3339)))
		}
	}
	return v.Report, nil
}

// verification is a Verify on its way.
type verification struct {
	Report
	key   *ecdsa.PublicKey
	kept  map[string]Head // by signature: what wasn't seen yet
	last  string          // the hash of the line before, or ""
	began time.Time       // of the first record there is
	tied  bool            // a line before had a hash
}

// What can be wrong with a line, beside what a reader says.
var (
	errUntied = errors.New("the line before it isn't the one that it was written after: that was altered, or lines between them were deleted, swapped or added")
	errBare   = errors.New("it has no hash of the line before it, as all have since the first that has one: it was added or altered")
	errForged = errors.New("it is a head whose signature doesn't verify: it was altered, signed with another key, or belongs into another file")
)

func (v *verification) line(text []byte) (err error) {
	v.Records++
	v.Unsigned++
	if !json.Valid(text) {
		err = errors.New("it isn't JSON: it was altered or cut")
	} else if v.Records == 1 {
		var first Event
		err = json.Unmarshal(text, &first)
		v.began = first.Time
	}
	sum, before := hashOf(text), v.last
	v.last = hex.EncodeToString(sum[:])
	if !bytes.HasPrefix(text, []byte(begin)) || len(text) < prevAt+len(noPrev) {
		v.Unchained++
		if v.tied {
			err = errBare
		}
		return err
	}
	prev := string(text[prevAt : prevAt+len(noPrev)])
	switch {
	case v.Records == 1:
		v.Later = prev != noPrev
	case prev != before:
		err = errUntied
	}
	v.tied = true
	if h, ok := parseHead(text); ok && err == nil {
		h.Prev = prev // the chain's, whatever another "prev" in the line says
		err = v.head(h)
	}
	return err
}

// head verifies a head that stands where it was written.
func (v *verification) head(h Head) error {
	if kept, ok := v.kept[h.Data.Signature]; ok && kept.Prev == h.Prev && kept.Time.Equal(h.Time) {
		delete(v.kept, h.Data.Signature)
	}
	if v.key == nil {
		return nil
	}
	sig, err := base64.StdEncoding.DecodeString(h.Data.Signature)
	if err != nil || h.Data.File != v.File || !ecdsa.VerifyASN1(v.key, statement(v.File, h.Time.Format(time.RFC3339Nano), h.Prev), sig) {
		return errForged
	}
	v.Heads++
	v.LastHead, v.Unsigned = h.Time, 0
	return nil
}
