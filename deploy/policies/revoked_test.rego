package mayfly.revoked_test

import data.mayfly.revoked
import rego.v1

digest := "sha256:0000000000000000000000000000000000000000000000000000000000000002"

feed := {"size": 2, "next": 2, "statements": [
	{"index": 0, "authority": "aa", "serial": "2", "reason": "keyCompromise", "reference": concat("", ["registry.example.com/app@", digest])},
	{"index": 1, "authority": "aa", "serial": "3", "reason": "unspecified"},
]}

verified(serial, authority) := {"artifact": "app", "good": true, "signatures": [{"result": "good", "san": "ci@example.com", "serial": serial, "authority": authority}]}

pod(image) := {"spec": {"containers": [{"image": "registry.example.com/other"}], "initContainers": [{"image": image}]}}

test_revoked_signature if {
	revoked.deny == {"the certificate 3, by which ci@example.com signed, is revoked (unspecified)"} with data.feed as feed with input as verified("3", "aa")
}

test_good_signature if {
	count(revoked.deny) == 0 with data.feed as feed with input as verified("4", "aa")
}

test_same_serial_of_another_authority if {
	count(revoked.deny) == 0 with data.feed as feed with input as verified("2", "bb")
}

test_without_feed if {
	revoked.deny == {"there is no feed of revocations: data.feed has no statements"} with data.feed as {} with input as verified("4", "aa")
}

test_empty_feed if {
	count(revoked.deny) == 0 with data.feed as {"size": 0, "next": 0, "statements": []} with input as verified("2", "aa")
}

test_revoked_image if {
	image := concat("", ["mirror.example.com/app@", digest])
	every input_ in [pod(image), {"request": {"object": pod(image)}}, {"review": {"object": pod(image)}}] {
		revoked.deny == {sprintf("the image %s is revoked (keyCompromise)", [image])} with data.feed as feed with input as input_
	}
}

test_good_image if {
	count(revoked.deny) == 0 with data.feed as feed with input as pod("registry.example.com/app@sha256:0000000000000000000000000000000000000000000000000000000000000001")
}
