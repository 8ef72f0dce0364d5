"""What every dialect uses: route tables, checked bodies, access rules, streams, the websocket pump."""
