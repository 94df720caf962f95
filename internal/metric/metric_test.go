package metric_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mayfly-ca/mayfly/internal/metric"
)

func TestMetrics(t *testing.T) {
	t.Parallel()
	asked := metric.Counter("asked_total", "Questions by answer.", "answer")
	up := metric.Gauge("up", "Whether it is up.", "name")
	free := metric.Read("free_bytes", "Free space.", prometheus.Labels{"disk": "a"}, func() float64 { return 7 })
	r := prometheus.NewRegistry()
	if err := metric.Register(r, asked, up, free); err != nil {
		t.Fatal(err)
	}
	asked.WithLabelValues("yes").Inc()
	up.WithLabelValues("x").Set(metric.Bool(true))
	up.WithLabelValues("y").Set(metric.Bool(false))
	if err := testutil.GatherAndCompare(r, strings.NewReader(`# HELP asked_total Questions by answer.
# TYPE asked_total counter
asked_total{answer="yes"} 1
# HELP free_bytes Free space.
# TYPE free_bytes gauge
free_bytes{disk="a"} 7
# HELP up Whether it is up.
# TYPE up gauge
up{name="x"} 1
up{name="y"} 0
`)); err != nil {
		t.Error(err)
	}
}

// What is there twice is an error; without a registry nobody looks.
func TestRegister(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	one, same := metric.Counter("a_total", "A."), metric.Counter("a_total", "A.")
	if err := metric.Register(r, one, same); err == nil || !strings.HasPrefix(err.Error(), "registering metrics: ") {
		t.Errorf("twice: %v", err)
	}
	if err := metric.Register(nil, one, same); err != nil {
		t.Errorf("without a registry: %v", err)
	}
}
