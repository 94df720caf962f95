package page

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/index"
)

// The chart: so many hours, and so many issuers by name, all others together.
const (
	chartHours   = 24
	chartIssuers = 5

	chartWidth, chartHeight = 720, 120 // of the drawing's own units
	countTime               = 20 * time.Second
	countPatience           = 150 * time.Millisecond // how long a page waits for the first count
	countRest               = 20                     // times as long as a count took, nothing is counted
)

// chart counts what is shown: at most a twentieth of the time, and no page waits for it.
type chart struct {
	mu      sync.Mutex
	last    []index.Count
	known   bool
	next    time.Time     // of the next count
	running chan struct{} // closed when it is done; nil: none runs
}

// counts are the last ones; known is false where there are none yet.
func (c *chart) counts(ctx context.Context, p *Page) (all []index.Count, known bool) {
	c.mu.Lock()
	if c.running == nil && !p.o.Now().Before(c.next) {
		c.running = make(chan struct{})
		go c.count(context.WithoutCancel(ctx), p)
	}
	running := c.running
	all, known = c.last, c.known
	c.mu.Unlock()
	if known || running == nil {
		return all, known
	}
	select {
	case <-running:
	case <-time.After(countPatience):
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, c.known
}

func (c *chart) count(ctx context.Context, p *Page) {
	ctx, cancel := context.WithTimeout(ctx, countTime)
	defer cancel()
	began := time.Now()
	all, err := p.o.Index.Counts(ctx, p.o.Now().UTC().Truncate(time.Hour).Add(-(chartHours-1)*time.Hour))
	if err != nil {
		p.o.Logger.LogAttrs(ctx, slog.LevelDebug, "the page's chart can't be counted", slog.Any("error", err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.last, c.known = all, true
	}
	c.next = p.o.Now().Add(max(time.Second, countRest*time.Since(began)))
	close(c.running)
	c.running = nil
}

// drawing is the chart as the template draws it.
type drawing struct {
	Bars    []bar
	Labels  []label
	Legend  []series
	Rows    []hour // the same as a table
	Total   int
	Most    int // in one hour
	Hours   int
	Waiting bool
}

type bar struct {
	X, Y, Width, Height float64
	Class               string
	Text                string
}

type label struct {
	X    float64
	Text string
}

// series is one issuer; Class is that of its bars.
type series struct {
	Class, Name string
	Number      int
}

type hour struct {
	Time    time.Time
	Numbers []int // as Legend has them
}

// classes are those of the issuers by how much they issued, and the rest's.
var classes = [chartIssuers + 1]string{"s1", "s2", "s3", "s4", "s5", "s0"}

// draw makes the chart of the last hours; nil without a count.
func (c *chart) draw(ctx context.Context, p *Page) *drawing {
	all, known := c.counts(ctx, p)
	d := &drawing{Hours: chartHours, Waiting: !known}
	first := p.o.Now().UTC().Truncate(time.Hour).Add(-(chartHours - 1) * time.Hour)
	totals := map[string]int{}
	for _, one := range all {
		totals[one.Issuer] += one.Number
		d.Total += one.Number
	}
	names := make([]string, 0, len(totals))
	for name := range totals {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if totals[a] != totals[b] {
			return totals[b] - totals[a]
		}
		return strings.Compare(a, b)
	})
	place := map[string]int{}
	for i, name := range names {
		i = min(i, chartIssuers)
		place[name] = i
		if i < len(d.Legend) {
			d.Legend[i].Number += totals[name]
			d.Legend[i].Name = "others"
			continue
		}
		shown := p.clean(strings.TrimPrefix(name, "https://"))
		if shown == "" {
			shown = "no issuer"
		}
		d.Legend = append(d.Legend, series{classes[i], shown, totals[name]})
	}
	for i := range chartHours {
		d.Rows = append(d.Rows, hour{first.Add(time.Duration(i) * time.Hour), make([]int, len(d.Legend))})
	}
	for _, one := range all {
		if i := int(one.Hour.Sub(first) / time.Hour); i >= 0 && i < chartHours {
			d.Rows[i].Numbers[place[one.Issuer]] += one.Number
		}
	}
	for _, row := range d.Rows {
		sum := 0
		for _, n := range row.Numbers {
			sum += n
		}
		d.Most = max(d.Most, sum)
	}
	d.layOut()
	return d
}

// layOut stacks the bars of each hour.
func (d *drawing) layOut() {
	const step = float64(chartWidth) / chartHours
	for i, row := range d.Rows {
		x, y := float64(i)*step, float64(chartHeight)
		if row.Time.Hour()%6 == 0 {
			d.Labels = append(d.Labels, label{x, row.Time.Format("15:04")})
		}
		for n, number := range row.Numbers {
			if number == 0 {
				continue
			}
			height := max(1.5, float64(number)/float64(d.Most)*(chartHeight-8))
			y -= height
			d.Bars = append(d.Bars, bar{x + 2, y, step - 4, height, d.Legend[n].Class, row.Time.Format("15:04") + " " + d.Legend[n].Name + ": " + grouped(number)})
		}
	}
}
