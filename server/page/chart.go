package page

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/mayfly-ca/mayfly/ca/index"
)

// The chart: so many hours, and so many issuers by name, all others together.
const (
	chartHours, chartIssuers = 24, 5
	chartStep, chartHeight   = 30, 120 // of an hour, in the drawing's units
	countRest                = 20      // times as long as a count took, nothing is counted

	countTime, countPatience = 20 * time.Second, 100 * time.Millisecond // of a count; how long a page waits for one
)

// chart counts what is shown: at most a twentieth of the time, and no page waits for it long.
type chart struct {
	flight singleflight.Group
	last   atomic.Pointer[[]index.Count] // nil: there is none yet
	next   atomic.Pointer[time.Time]     // of the next count
}

// counts are the last ones; nil where there are none yet.
func (c *chart) counts(ctx context.Context, p *Page) *[]index.Count {
	if next := c.next.Load(); next == nil || !p.o.Now().Before(*next) {
		done := c.flight.DoChan("", func() (any, error) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countTime)
			defer cancel()
			began := time.Now()
			all, err := p.o.Index.Counts(ctx, p.firstHour())
			if err == nil {
				c.last.Store(&all)
			}
			next := p.o.Now().Add(max(time.Second, countRest*time.Since(began)))
			c.next.Store(&next)
			return nil, err
		})
		select {
		case <-done: // a search that can't be done says so by itself
		case <-time.After(countPatience):
		}
	}
	return c.last.Load()
}

func (p *Page) firstHour() time.Time {
	return p.o.Now().UTC().Truncate(time.Hour).Add(-(chartHours - 1) * time.Hour)
}

// drawing is the chart as the template draws it, and as a table.
type drawing struct {
	Bars               []bar
	Legend             []series
	Hours              []hour
	Total, Most, Width int // Most is of one hour
}

// bar is one issuer's in one hour; Class is its colour.
type bar struct {
	X, Y, Height float64
	Class, Text  string
}

type series struct {
	Class, Name string
	Number      int
}

type hour struct {
	Time    time.Time
	X       int
	Numbers []int // as Legend has them
}

// draw makes the chart of the last hours; nil without a count.
func (c *chart) draw(ctx context.Context, p *Page) *drawing {
	last, first := c.counts(ctx, p), p.firstHour()
	if last == nil {
		return nil
	}
	d, totals, place := &drawing{Width: chartHours * chartStep}, map[string]int{}, map[string]int{}
	for _, one := range *last {
		totals[one.Issuer] += one.Number
		d.Total += one.Number
	}
	names := slices.SortedFunc(maps.Keys(totals), func(a, b string) int { return cmp.Or(totals[b]-totals[a], strings.Compare(a, b)) })
	for i, name := range names {
		if place[name] = min(i, chartIssuers); i > chartIssuers {
			d.Legend[chartIssuers].Name, d.Legend[chartIssuers].Number = "others", d.Legend[chartIssuers].Number+totals[name]
			continue
		}
		d.Legend = append(d.Legend, series{"s" + string(rune('0'+i)), p.clean(strings.TrimPrefix(cmp.Or(name, "no issuer"), "https://")), totals[name]})
	}
	sums := make([]int, chartHours)
	for i := range chartHours {
		d.Hours = append(d.Hours, hour{first.Add(time.Duration(i) * time.Hour), i * chartStep, make([]int, len(d.Legend))})
	}
	for _, one := range *last {
		if i := int(one.Hour.Sub(first) / time.Hour); i >= 0 && i < chartHours {
			d.Hours[i].Numbers[place[one.Issuer]] += one.Number
			sums[i] += one.Number
		}
	}
	d.Most = slices.Max(sums)
	for _, h := range d.Hours {
		y := float64(chartHeight)
		for n, number := range h.Numbers {
			if number > 0 {
				height := max(1.5, float64(number)/float64(d.Most)*(chartHeight-8))
				y -= height
				d.Bars = append(d.Bars, bar{float64(h.X + 2), y, height, d.Legend[n].Class, h.Time.Format("15:04 ") + d.Legend[n].Name})
			}
		}
	}
	return d
}
