package extension

// Standard is the name of an extension that isn't one of ours, by its OID in
// dotted form: those of RFC 5280 §4.2 and of RFC 6962 §3. Empty: it is none of them.
func Standard(oid string) string { return standard[oid] }

var standard = map[string]string{
	"2.5.29.9":                "subject directory attributes",
	"2.5.29.14":               "subject key identifier",
	"2.5.29.15":               "key usage",
	"2.5.29.16":               "private key usage period",
	"2.5.29.17":               "subject alternative name",
	"2.5.29.18":               "issuer alternative name",
	"2.5.29.19":               "basic constraints",
	"2.5.29.30":               "name constraints",
	"2.5.29.31":               "CRL distribution points",
	"2.5.29.32":               "certificate policies",
	"2.5.29.33":               "policy mappings",
	"2.5.29.35":               "authority key identifier",
	"2.5.29.36":               "policy constraints",
	"2.5.29.37":               "extended key usage",
	"2.5.29.46":               "freshest CRL",
	"2.5.29.54":               "inhibit any-policy",
	"1.3.6.1.5.5.7.1.1":       "authority information access",
	"1.3.6.1.5.5.7.1.11":      "subject information access",
	"1.3.6.1.4.1.11129.2.4.2": "signed certificate timestamps", // RFC 6962 §3.3
	"1.3.6.1.4.1.11129.2.4.3": "precertificate poison",         // RFC 6962 §3.1
}
