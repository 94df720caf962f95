package timestamp

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// at is the time that a query gets; "" when it is refused for the clock.
func at(t *testing.T, f *InForce) string {
	t.Helper()
	reply, refused := f.ReplyDER(t.Context(), newAsk().der())
	if refused == nil {
		return string(infoOf(t, reply).Time.Bytes)
	}
	if refused.Reason != fault.TimeUnavailable || parsed(t, reply).Status.FailInfo.At(int(timeNotAvailable)) != 1 {
		t.Fatalf("refused as %v", refused)
	}
	return ""
}

// A clock that is set by more than the bound gives no time until it has settled, and
// never one before the last that it gave.
func TestClockThatIsSet(t *testing.T) {
	type step struct {
		set, pass time.Duration
		want      string // the time of a timestamp; "" is none
	}
	for name, steps := range map[string][]step{
		"it runs":                  {{0, 0, "20270301130000Z"}, {0, 90 * time.Second, "20270301130130Z"}, {0, 48 * time.Hour, "20270303130130Z"}},
		"a little forward":         {{time.Second, 0, "20270301130001Z"}},
		"a little back":            {{0, 0, "20270301130000Z"}, {-time.Second, 0, "20270301130000Z"}, {0, 2 * time.Second, "20270301130001Z"}},
		"forward":                  {{1100 * time.Millisecond, 0, ""}, {0, settled - time.Second, ""}, {0, time.Second, "20270301130501Z"}},
		"little by little":         {{600 * time.Millisecond, 0, "20270301130000Z"}, {600 * time.Millisecond, time.Minute, ""}},
		"back":                     {{0, 0, "20270301130000Z"}, {-2 * time.Second, 0, ""}, {0, settled, "20270301130458Z"}},
		"far back":                 {{0, 0, "20270301130000Z"}, {-time.Hour, settled, ""}, {0, settled, ""}, {0, 50 * time.Minute, "20270301130000Z"}, {0, time.Minute, "20270301130100Z"}},
		"again while it settles":   {{time.Hour, 0, ""}, {-time.Hour, 4 * time.Minute, ""}, {0, 4 * time.Minute, ""}, {0, time.Minute, "20270301130900Z"}},
		"back before it was asked": {{-10 * time.Minute, settled, ""}, {0, settled, "20270301130000Z"}},
	} {
		t.Run(name, func(t *testing.T) {
			f, c, registry := force(t, stub(t))
			for i, s := range steps {
				c.pass(s.pass)
				c.set(s.set)
				signed := f.current.Load().signer.(*stubSigner)
				before := signed.signed.Load()
				got := at(t, f)
				if got != s.want {
					t.Fatalf("step %d: %q, want %q", i, got, s.want)
				}
				if made := signed.signed.Load() - before; (made == 1) != (got != "") {
					t.Errorf("step %d: %d signatures", i, made)
				}
				trusted := "0"
				if got != "" {
					trusted = "1"
				}
				if err := testutil.GatherAndCompare(registry, strings.NewReader("# HELP mayfly_timestamp_clock_trusted 0 while no timestamps are given because the clock was set, or is off, else 1.\n"+
					"# TYPE mayfly_timestamp_clock_trusted gauge\nmayfly_timestamp_clock_trusted "+trusted+"\n"), "mayfly_timestamp_clock_trusted"); err != nil {
					t.Error(err)
				}
				if err := f.Ready(t.Context()); (err == nil) != (got != "") {
					t.Errorf("step %d: readiness says %v", i, err)
				}
			}
		})
	}
}

// source is an NTP server over the network, whose clock is that of a test and off.
type source struct {
	address string
	off     atomic.Int64
	clock   atomic.Pointer[clocks] // nil: it is silent
}

func newSource(t *testing.T, lie func(answer []byte)) *source {
	t.Helper()
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &source{address: conn.LocalAddr().String()}
	done := make(chan struct{})
	t.Cleanup(func() { _ = conn.Close(); <-done })
	go func() {
		defer close(done)
		query := make([]byte, 128)
		for {
			n, from, err := conn.ReadFrom(query)
			if err != nil {
				return
			}
			c := s.clock.Load()
			if n < 48 || c == nil {
				continue
			}
			now := c.now().Add(time.Duration(s.off.Load()))
			answer := make([]byte, 48) // RFC 5905 §7.3
			answer[0], answer[1], answer[2], answer[3] = 4<<3|4, 1, 6, 0xe9
			copy(answer[12:], "TEST")
			stamp(answer[16:], now.Add(-time.Second))
			copy(answer[24:32], query[40:48])
			stamp(answer[32:], now)
			stamp(answer[40:], now)
			if lie != nil {
				lie(answer)
			}
			_, _ = conn.WriteTo(answer, from)
		}
	}()
	return s
}

// stamp writes a time as NTP does: seconds since 1900, and their fraction.
func stamp(to []byte, at time.Time) {
	binary.BigEndian.PutUint32(to, uint32(at.Unix()+2208988800))
	binary.BigEndian.PutUint32(to[4:], uint32(uint64(at.Nanosecond())<<32/1e9))
}

// Time sources stop a clock that is off, however it came to be, and confirm one that
// was set. The median counts, so that one that lies changes nothing; and what they say
// is never the time of a timestamp.
func TestTimeSources(t *testing.T) {
	all := []*source{newSource(t, nil), newSource(t, nil), newSource(t, nil)}
	f, c, _ := force(t, stub(t), all[0].address, all[1].address, all[2].address)
	for _, s := range all {
		s.clock.Store(c)
	}
	compare := func() {
		t.Helper()
		if err := f.clock.compare(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what, want string) {
		t.Helper()
		if got := at(t, f); got != want {
			t.Fatalf("%s: %q, want %q", what, got, want)
		}
	}
	compare()
	expect("all agree", "20270301130000Z")
	all[0].off.Store(int64(time.Hour))
	compare()
	expect("one lies", "20270301130000Z")
	all[1].off.Store(int64(time.Hour))
	compare()
	expect("the clock is an hour behind", "")
	c.set(time.Hour)
	expect("it was set, and nobody has confirmed it", "")
	all[0].off.Store(0)
	all[1].off.Store(0)
	compare()
	expect("it is confirmed", "20270301140000Z")
	all[0].off.Store(int64(-1200 * time.Millisecond))
	all[1].off.Store(int64(-1200 * time.Millisecond))
	compare()
	expect("it is ahead by more than the bound", "")
	c.pass(comparedFor + time.Second)
	expect("nobody has compared it for long: what was known of it no longer is", "20270301141601Z")
}

// A time source that doesn't answer, or answers what it shouldn't, counts for nothing.
func TestTimeSourcesThatFail(t *testing.T) {
	for name, lie := range map[string]func([]byte){
		"another's answer":      func(b []byte) { b[24] ^= 1 },
		"a kiss of death":       func(b []byte) { b[1] = 0; copy(b[12:], "DENY") },
		"it isn't synchronized": func(b []byte) { b[0] |= 3 << 6 },
		"a root that is far":    func(b []byte) { b[4] = 0x7f },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t, lie)
			s.off.Store(int64(time.Hour))
			f, c, _ := force(t, stub(t), s.address)
			s.clock.Store(c)
			if err := f.clock.compare(t.Context()); err == nil || !strings.Contains(err.Error(), s.address) {
				t.Errorf("the error is %v, want one that names the source", err)
			}
			if at(t, f) == "" {
				t.Error("no timestamp is given for what a source said that can't be believed")
			}
		})
	}
}

// Watch looks at the clock when nobody asks for a timestamp, so that the time to
// settle begins when it was set.
func TestWatch(t *testing.T) {
	f, c, _ := force(t, stub(t))
	var told []bool
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		f.clock.running = func() time.Duration { return time.Since(began) }
		f.clock.now = func() time.Time { return c.now().Add(time.Since(began)) }
		go f.clock.watch(ctx, f.bound, func(err error) { told = append(told, err == nil) })
		_ = wait.For(t.Context(), clockInterval/2)
		c.set(time.Hour)
		_ = wait.For(t.Context(), settled+2*clockInterval)
		cancel()
		synctest.Wait()
	})
	if want := []bool{true, false, false, false, false, false, true, true}; !slices.Equal(told, want) {
		t.Errorf("the clock was trusted at %v, want %v", told, want)
	}
}
