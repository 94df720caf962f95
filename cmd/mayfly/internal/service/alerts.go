package service

import (
	"context"
	"time"

	"github.com/mayfly-ca/mayfly/ca/notify"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// startAlerts has alerts made of what the index keeps.
func (s *Service) startAlerts() (err error) {
	if s.index == nil {
		return nil
	}
	o := notify.Options{Source: s.PublicURL(), Known: s.indexed, Index: s.index, Now: s.Now, Logger: s.Logger, Metrics: s.Registry}
	if s.revoker != nil {
		o.Statements = s.revoker.Log
	}
	if s.alerts, err = notify.New(o); err != nil {
		return err
	}
	s.alerts.Use(s.loaded.alerts)
	s.index.SetTaker(s.alerts)
	return nil
}

// indexed is until when the index has every certificate; zero where that isn't known.
func (s *Service) indexed() (until time.Time) {
	for i, l := range s.follower.Status() {
		if i == 0 || l.Looked.Before(until) {
			until = l.Looked
		}
	}
	return until
}

// prepareAlerts has next's rules asked, and next's targets told.
func (s *Service) prepareAlerts(_ context.Context, next *state) (func(context.Context), func(), error) {
	if s.index == nil {
		return nil, nil, nil
	}
	var f setting.Faults
	loaded := notify.Load("alerts", next.config.Alerts, &f)
	if err := f.Err(); err != nil {
		return nil, nil, err
	}
	return func(context.Context) { s.alerts.Use(loaded) }, nil, nil
}
