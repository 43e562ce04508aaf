// NAME: mail with a campaign field goes as bulk mail in a lane of its own, all other mail by
// managed relay on the gateway's terms.

// Runs once, at the upload; what it leaves in variables is there in every call. An exception
// refuses the upload and is shown to the person who made it.
export function init(config) {
  const { campaign_header } = JSON.parse(config);
  if (!campaign_header) throw new Error("campaign_header: name the field, such as X-Campaign");
  // The host passes only the fields that are named here.
  return { name: "NAME", version: "0.1.0", headers: [campaign_header] };
}

// Runs for each message, in a fresh copy of the memory that init left.
export function decide(message) {
  const campaign = message.headers[0]?.value;
  if (!campaign) return "managed";
  return {
    otherwise: { managed: { class: "bulk", lane: campaign.slice(0, 16) } },
    tags: { campaign: campaign.slice(0, 60) },
  };
}
